package demo

import (
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/lab/vpc"
)

// The document's table and the rows that the walk-through shows are the same.
func TestTheDocumentedTableOfModesIsTheOneThatIsShown(t *testing.T) {
	b, err := os.ReadFile("../../docs/modes.md")
	if err != nil {
		t.Fatal(err)
	}
	want := markdown(modeTable)
	head, _, _ := strings.Cut(want, "\n")
	_, after, found := strings.Cut(string(b), head+"\n")
	if !found {
		t.Fatalf("docs/modes.md has no table with the head %q", head)
	}
	table, _, _ := strings.Cut(after, "\n\n")
	if got := head + "\n" + table + "\n"; got != want {
		t.Errorf("docs/modes.md has\n%s\nand modetable.go says\n%s", got, want)
	}
}

// Each row has flows between known actors, for both modes alike, or a claim, but not both.
func TestEachRowOfTheTableOfModesIsShownSomehow(t *testing.T) {
	claims := map[string]bool{claimMetadata: true, claimProbes: true, claimKubeletLocal: true, claimExec: true}
	seen := map[string]bool{}
	for _, r := range modeTable {
		if seen[r.traffic] {
			t.Errorf("%q is there twice", r.traffic)
		}
		seen[r.traffic] = true
		if (r.flows == nil) == (r.claim == "") || r.claim != "" && !claims[r.claim] {
			t.Errorf("%q: flows %t, claim %q", r.traffic, r.flows != nil, r.claim)
		}
		delete(claims, r.claim)
		for _, w := range []way{r.strict, r.standard} {
			for _, words := range []string{w.out, w.in} {
				if _, known := testGroups[words]; !known && words != nobody {
					t.Errorf("%q: nobody knows whose groups %q are", r.traffic, words)
				}
			}
		}
		if r.flows == nil {
			continue
		}
		tried := map[refusal]bool{}
		for _, f := range r.flows(strictPod, strictTwin) {
			for _, x := range f.tries(r.strict) {
				tried[x.side] = true
			}
		}
		if r.strict.lost {
			continue
		}
		if !tried[refusedNowhere] || r.traffic != rowOfDNS && (!tried[refusedOut] || !tried[refusedIn] && r.strict.in != nobody) {
			t.Errorf("%q is not tried at all of its ports: %v", r.traffic, tried)
		}
	}
	for c := range claims {
		t.Errorf("no row has the claim %q", c)
	}
}

var testGroups = map[string]string{
	thePod: "sg-pod", theOther: "sg-pod", theNode: "sg-node", theOtherNode: "sg-node", itsENI: "sg-db", controlPlane: "sg-cp",
}

// A pod's connection to a regular pod, as each mode has it, and what would be seen if it were otherwise.
func TestTheFlowLogTellsWhoseGroupsApplied(t *testing.T) {
	strict, standard := modeTable[0].strict, modeTable[0].standard
	f := flow{from: strictPod, to: regularPod, ports: direct}
	allowed, notOut, notIn := f.tries(strict)[0], f.tries(strict)[1], f.tries(strict)[2]
	world := func(connected map[try]bool, log string) *packets {
		records, err := parseRecords(log)
		if err != nil {
			t.Fatal(err)
		}
		return &packets{
			address: map[string]string{strictPod: "192.168.0.9", regularPod: "192.168.0.7"},
			eni:     map[string]eniOf{"192.168.0.9": {"eni-b", true, []string{"sg-pod"}}, "192.168.0.7": {"eni-n", false, []string{"sg-node"}}},
			groups:  testGroups, connected: connected, records: records,
		}
	}
	const both = "2 1 eni-b 192.168.0.9 192.168.0.7 40000 8101 6 3 180 1 2 ACCEPT OK\n2 1 eni-n 192.168.0.9 192.168.0.7 40000 8101 6 3 180 1 2 ACCEPT OK\n"
	const back = "2 1 eni-b 192.168.0.7 192.168.0.9 8101 40000 6 3 180 1 2 ACCEPT OK\n2 1 eni-n 192.168.0.7 192.168.0.9 8101 40000 6 3 180 1 2 ACCEPT OK\n"
	const out = "2 1 eni-b 192.168.0.9 192.168.0.7 40001 8201 6 3 180 1 2 REJECT OK\n"
	const in = "2 1 eni-b 192.168.0.9 192.168.0.7 40002 8301 6 3 180 1 2 ACCEPT OK\n2 1 eni-n 192.168.0.9 192.168.0.7 40002 8301 6 3 180 1 2 REJECT OK\n"
	yes, no := map[try]bool{allowed: true, notOut: true, notIn: true}, map[try]bool{allowed: true, notOut: false, notIn: false}
	for _, c := range []struct {
		name      string
		try       try
		way       way
		connected map[try]bool
		log, want string
	}{
		{"strict, let through", allowed, strict, no, both + back, ""},
		{"strict, not let out", notOut, strict, no, out, ""},
		{"strict, not let in", notIn, strict, no, in, ""},
		{"standard", allowed, standard, yes, "", ""},
		{"standard, where groups would refuse", notOut, standard, yes, "", ""},
		{"other traffic", notIn, standard, yes, both + back, ""},
		{"strict, but it stayed on the node", allowed, strict, no, "", "let through by ENI"},
		{"strict, but the answer stayed on the node", allowed, strict, no, both, "the answer"},
		{"strict, but past the pod's groups", notOut, strict, yes, "", "connected true"},
		{"strict, refused by the receiver instead", notOut, strict, no, strings.ReplaceAll(in, "8301", "8201"), "let through by ENI"},
		{"strict, let through and then refused", notOut, strict, no, out + strings.Replace(out, "REJECT", "ACCEPT", 1), "both"},
		{"standard, but by the branch ENI", allowed, standard, yes, both + back, "let through by ENI"},
		{"standard, but the answer by the branch ENI", allowed, standard, yes, back, "the answer"},
		{"it failed for another reason", notIn, standard, no, "", "connected false"},
		{"nobody tried", allowed, strict, map[try]bool{}, both + back, "tried false"},
		{"not that ENI's groups", allowed, passing(thePod, itsENI), no, both + back, "want an ENI with its ENI's groups"},
		{"not a branch ENI", allowed, way{out: thePod, in: theNode}, no, both + back, "branch ENIs: true"},
	} {
		err := world(c.connected, c.log).judge(c.try, c.way)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// What gets nowhere does so for one reason: EC2's check of sources, at the node's ENI or at the pod's.
func TestWhatIsLostIsLostByTheCheckOfSources(t *testing.T) {
	f := flow{from: farPod, to: strictPod, caller: farPod, nodePort: 31130, ports: byNode}
	tries := f.tries(lost)
	if len(tries) != 1 || tries[0].side != refusedNowhere {
		t.Fatalf("%v", tries)
	}
	drop := func(eni string, reason vpc.Reason, src, dst string) vpc.Drop {
		return vpc.Drop{ENI: eni, Reason: reason, Src: netip.MustParseAddrPort(src), Dst: netip.MustParseAddrPort(dst)}
	}
	there := drop("eni-n", vpc.SourceDestCheck, "192.168.0.8:40000", "192.168.0.9:8103")
	back := drop("eni-b", vpc.SourceDestCheck, "192.168.0.6:31130", "192.168.0.8:40000")
	for _, c := range []struct {
		name      string
		connected map[try]bool
		drops     []vpc.Drop
		fine      bool
	}{
		{"the caller's packet by the node's ENI", map[try]bool{tries[0]: false}, []vpc.Drop{there}, true},
		{"the pod's answer by its ENI", map[try]bool{tries[0]: false}, []vpc.Drop{back}, true},
		{"it is reached", map[try]bool{tries[0]: true}, []vpc.Drop{back}, false},
		{"nobody tried", nil, []vpc.Drop{back}, false},
		{"no drop", map[try]bool{tries[0]: false}, nil, false},
		{"refused by a group", map[try]bool{tries[0]: false}, []vpc.Drop{drop("eni-n", vpc.NoRule, "192.168.0.8:40000", "192.168.0.9:8103")}, false},
		{"another port's answer", map[try]bool{tries[0]: false}, []vpc.Drop{drop("eni-b", vpc.SourceDestCheck, "192.168.0.6:31131", "192.168.0.8:40000")}, false},
		{"another pod's", map[try]bool{tries[0]: false}, []vpc.Drop{drop("eni-x", vpc.SourceDestCheck, "192.168.0.6:31130", "192.168.0.8:40000")}, false},
	} {
		p := &packets{
			address: map[string]string{farPod: "192.168.0.8", hostPod: "192.168.0.6", strictPod: "192.168.0.9"},
			eni:     map[string]eniOf{"192.168.0.6": {id: "eni-n"}, "192.168.0.9": {id: "eni-b", branch: true}},
			groups:  testGroups, connected: c.connected, drops: c.drops,
		}
		if err := p.judge(tries[0], lost); (err == nil) != c.fine {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A busy machine's first answer may be late; what ought to be refused is asked for once.
func TestOnlyWhatShouldHaveConnectedIsTriedAgain(t *testing.T) {
	w := passing(thePod, theNode)
	f := to(strictPod, regularPod)[0]
	tries := f.tries(w)
	connects := func(x try) bool { return x.connects(w) }
	if !connects(tries[0]) || connects(tries[1]) || connects(tries[2]) || f.tries(lost)[0].connects(lost) || !tries[1].connects(local) {
		t.Errorf("%v: which of them connect is wrong", tries)
	}
	byActor := map[string][]try{strictPod: tries}
	for _, c := range []struct {
		connected map[try]bool
		again     []try
	}{
		{map[try]bool{tries[0]: true, tries[1]: false, tries[2]: false}, nil},
		{map[try]bool{tries[0]: false, tries[1]: false, tries[2]: false}, tries[:1]},
		{map[try]bool{tries[0]: true, tries[1]: true, tries[2]: false}, nil}, // judge says what is wrong with it
		{map[try]bool{tries[0]: true, tries[1]: false}, tries[2:]},
		{nil, tries},
	} {
		if got := missing(byActor, c.connected, connects)[strictPod]; !slices.Equal(got, c.again) {
			t.Errorf("after %v again %v, want %v", c.connected, got, c.again)
		}
	}
}

func TestTriesAreReadBackAsTheyWereMade(t *testing.T) {
	tries := append(to(strictPod, regularPod)[0].tries(local), try{flow: flow{from: strictPod, to: nodeLocal, query: true}, port: 53})
	script := tryScript(tries, func(x try) (string, uint16) { return "192.0.2.1", x.port })
	for _, want := range []string{"n=0 say timeout 10 busybox nc -w 8 192.0.2.1 8101 -e true &\n", "n=3 say timeout 10 busybox nslookup -type=a db.lab.internal 192.0.2.1 &\n"} {
		if !strings.Contains(script, want) {
			t.Errorf("no %q in\n%s", want, script)
		}
	}
	got, err := readTries(tries, "2 no\n0 yes\n3 yes\n1 no\n")
	if want := (map[try]bool{tries[0]: true, tries[1]: false, tries[2]: false, tries[3]: true}); err != nil || !maps.Equal(got, want) {
		t.Errorf("read %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "0 yes\n1 no\n2 no\n", "0 yes\n1 no\n2 no\n4 yes\n", "0 yes\n1 no\n2 no\n3 perhaps\n", "sh: syntax error\n"} {
		if got, err := readTries(tries, bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
	if _, err := parseRecords("2 1 eni-b NODATA\n"); err == nil {
		t.Error("a record without addresses was read")
	}
}
