package podeni

import (
	"slices"
	"testing"

	"github.com/branchline-cni/branchline/ipamd/enis"
)

func TestDecide(t *testing.T) {
	yes, no, wrong := Label{true, true, true}, Label{Known: true}, Label{Known: true, Present: true}
	up := &enis.ENI{ID: "eni-t", Trunk: true, LinkIndex: 7, LinkUp: true}
	down := &enis.ENI{ID: "eni-t", Trunk: true, LinkIndex: 7}
	for name, c := range map[string]struct {
		s            TrunkState
		has, cninode bool
		label        Label
		want         []Action
	}{
		"no CNINode yet: wait for it":               {s: TrunkState{Wanted: true, Supported: true, FreeSlot: true}},
		"a free slot: ask":                          {s: TrunkState{Wanted: true, Supported: true, FreeSlot: true}, cninode: true, want: []Action{AskForTrunk}},
		"no free slot: say so, don't ask":           {s: TrunkState{Wanted: true, Supported: true}, cninode: true, want: []Action{SayNoSlot}},
		"asked long ago: say so":                    {s: TrunkState{Wanted: true, Supported: true, FreeSlot: true, Late: true}, cninode: true, has: true, want: []Action{SayMissing}},
		"long without a CNINode: say so":            {s: TrunkState{Wanted: true, Supported: true, FreeSlot: true, Late: true}, want: []Action{SayMissing}},
		"long without a slot: that is said":         {s: TrunkState{Wanted: true, Supported: true, Late: true}, cninode: true, want: []Action{SayNoSlot}},
		"off: nothing is missing":                   {s: TrunkState{Supported: true, Late: true}, cninode: true, has: true},
		"asked: wait":                               {s: TrunkState{Wanted: true, Supported: true, FreeSlot: true}, cninode: true, has: true},
		"attached, link down: no label":             {s: TrunkState{Wanted: true, Supported: true, Trunk: down}, cninode: true, has: true},
		"attached and up: label":                    {s: TrunkState{Wanted: true, Supported: true, Trunk: up}, cninode: true, has: true, label: no, want: []Action{SetLabel}},
		"the Node is not known: no label":           {s: TrunkState{Wanted: true, Supported: true, Trunk: up}, cninode: true, has: true},
		"somebody gave the label another value":     {s: TrunkState{Wanted: true, Supported: true, Trunk: up}, cninode: true, has: true, label: wrong, want: []Action{SetLabel}},
		"off and somebody set the label":            {s: TrunkState{Supported: true}, cninode: true, label: wrong, want: []Action{RemoveLabel}},
		"labelled: nothing":                         {s: TrunkState{Wanted: true, Supported: true, Trunk: up}, cninode: true, has: true, label: yes},
		"a lost feature is written again":           {s: TrunkState{Wanted: true, Supported: true, Trunk: up}, cninode: true, label: yes, want: []Action{AskForTrunk}},
		"unsupported: said, nothing asked":          {s: TrunkState{Wanted: true, FreeSlot: true}, cninode: true, want: []Action{SayUnsupported}},
		"off with branch pods: the label stays":     {s: TrunkState{Supported: true, Trunk: up, BranchPods: true}, cninode: true, has: true, label: yes},
		"off and the last one gone: the label goes": {s: TrunkState{Supported: true, Trunk: up}, cninode: true, has: true, label: yes, want: []Action{RemoveLabel}},
		"off and removed: nothing":                  {s: TrunkState{Supported: true, Trunk: up}, cninode: true, has: true, label: no},
	} {
		if got := Decide(c.s, Written{CNINode: c.cninode, Trunk: c.has}, c.label); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

// A trunk stays where it was made: so the ENIConfig is named first, and without its name none is asked for.
func TestTheENIConfigIsNamedBeforeATrunkIsAskedFor(t *testing.T) {
	node := func(name string, freeSlot bool) TrunkState {
		return TrunkState{Wanted: true, Supported: true, FreeSlot: freeSlot, Custom: true, ENIConfig: name}
	}
	off := node("a", true)
	off.Wanted = false
	plain := node("a", true)
	plain.Custom = false
	for name, c := range map[string]struct {
		s    TrunkState
		has  Written
		want []Action
	}{
		"both, in order":                       {node("a", true), Written{CNINode: true}, []Action{NameENIConfig, AskForTrunk}},
		"the name is not known yet":            {node("", true), Written{CNINode: true}, nil},
		"named: ask":                           {node("a", true), Written{CNINode: true, ENIConfig: true}, []Action{AskForTrunk}},
		"another one while the trunk is there": {node("b", false), Written{CNINode: true, Trunk: true}, []Action{NameENIConfig}},
		"all is written":                       {node("a", false), Written{CNINode: true, Trunk: true, ENIConfig: true}, nil},
		"no free slot: the name all the same":  {node("a", false), Written{CNINode: true}, []Action{NameENIConfig, SayNoSlot}},
		"no CNINode":                           {node("a", true), Written{}, nil},
		"ENABLE_POD_ENI is off":                {off, Written{CNINode: true}, nil},
		"custom networking is off":             {plain, Written{CNINode: true}, []Action{AskForTrunk}},
	} {
		if got := Decide(c.s, c.has, Label{}); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}
