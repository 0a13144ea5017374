// Package contender says what the benchmark compares: which executable is run how for one pod's ADD and DEL, and what it
// wants to find in its host namespace. It runs nothing itself (package series does).
package contender

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/test/bench/agent"
	"github.com/branchline-cni/branchline/test/bench/world"
)

// Names of the contenders, as they are printed and as -only takes them.
const (
	Ours       = "aws-cni"
	OursBranch = "aws-cni branch"
	PTP        = "ptp"
	VLAN       = "vlan"
	Bare       = "bare loop"
	OneCall    = "one call"
	LeanCall   = "lean call"
	Empty      = "empty"
)

// Programs are the executables that contenders need in their folder, beside ours: those of the benchmark and those of
// other projects, by the packages that they are built from.
func Programs() map[string]string {
	const cni, bench = "github.com/containernetworking/plugins/plugins/", "./test/bench/"
	return map[string]string{
		"ptp": cni + "main/ptp", "vlan": cni + "main/vlan", "host-local": cni + "ipam/host-local",
		"bare": bench + "bare", "onecall": bench + "onecall", "leancall": bench + "leancall", "empty": bench + "empty", "peak": bench + "peak",
	}
}

// Pod is what a runtime knows of a pod.
type Pod struct {
	N           int    // from 0
	ContainerID string // another one for each sandbox
	Netns       string
}

// Invocation is one run of an executable.
type Invocation struct {
	Argv  []string
	Env   []string
	Stdin []byte
}

// Contender is one way to wire pods, in a host namespace of its own.
type Contender struct {
	Name string
	// MaxPods is how many pods it can have at a time; 0 for no limit of its own.
	MaxPods int
	// Add and Del are run in the host namespace. Del gets what Add has printed.
	Add func(Pod) (Invocation, error)
	Del func(Pod, []byte) (Invocation, error)
	// Loop reads, from what a run has printed, the nanoseconds without the process around; nil for most.
	Loop func(stdout []byte) (int64, error)

	close func() error
}

// Close gives back what the contender holds outside its host namespace.
func (c *Contender) Close() error {
	if c.close == nil {
		return nil
	}
	return c.close()
}

// New prepares a contender in host. bin is the folder of executables, dir a new folder for what it writes.
func New(name, bin, dir string, host *world.Namespace) (*Contender, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for %s: %w", name, err)
	}
	if err := prepareHost(host); err != nil {
		return nil, fmt.Errorf("prepare the host namespace of %s: %w", name, err)
	}
	switch name {
	case Ours, OursBranch, OneCall, LeanCall:
		return withAgent(name, bin, dir, host)
	case PTP, VLAN:
		return reference(name, bin, dir, host)
	case Bare:
		return bare(bin), nil
	case Empty:
		run := Invocation{Argv: []string{filepath.Join(bin, "empty")}}
		return &Contender{
			Name: name,
			Add:  func(Pod) (Invocation, error) { return run, nil },
			Del:  func(Pod, []byte) (Invocation, error) { return run, nil },
		}, nil
	}
	return nil, fmt.Errorf("there is no contender %q", name)
}

// withAgent prepares those that talk to the agent.
func withAgent(name, bin, dir string, host *world.Namespace) (*Contender, error) {
	trunk := 0
	if name == OursBranch {
		var err error
		if trunk, err = makeTrunk(host); err != nil {
			return nil, err
		}
	}
	socket := filepath.Join(dir, "ipamd.sock")
	a, err := agent.Start(socket, trunk)
	if err != nil {
		return nil, err
	}
	c := &Contender{Name: name, close: a.Close}
	switch name {
	case OneCall, LeanCall:
		program := map[string]string{OneCall: "onecall", LeanCall: "leancall"}[name]
		call := func(verb string, p Pod) (Invocation, error) {
			return Invocation{Argv: []string{
				filepath.Join(bin, program), socket, verb, agent.PodNamespace, agent.PodName(agent.Regular, p.N), p.ContainerID,
			}}, nil
		}
		c.Add = func(p Pod) (Invocation, error) { return call("ADD", p) }
		c.Del = func(p Pod, _ []byte) (Invocation, error) { return call("DEL", p) }
	default:
		kind := agent.Regular
		if name == OursBranch {
			kind, c.MaxPods = agent.Branch, agent.MaxBranch
		}
		config := map[string]any{
			"cniVersion": CNIVersion, "name": "aws-cni", "type": "aws-cni", "vethPrefix": vethPrefix, "mtu": "9001",
			"podSGEnforcingMode": "strict", "pluginLogFile": filepath.Join(dir, "plugin.log"), "pluginLogLevel": "INFO", "ipamdSocket": socket,
		}
		c.useCNI(filepath.Join(bin, "aws-cni"), kind, func(Pod) map[string]any { return config })
	}
	return c, nil
}
