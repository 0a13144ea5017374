package model

import (
	"go/parser"
	"go/token"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestTheModelImportsNothingOfTheProduct(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "model.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range f.Imports {
		if strings.Contains(i.Path.Value, ".") {
			t.Errorf("it imports %s", i.Path.Value)
		}
	}
}

func TestWhatIsMissingForeignOrAnOlderSandboxesIsTold(t *testing.T) {
	before := []string{"link eth0"}
	older := Sandbox{ID: "1", Namespace: "shop", Pod: "a", Kind: Strict, Address: netip.MustParseAddr("192.168.47.64"), VLAN: 7}
	newer := Sandbox{ID: "2", Namespace: "shop", Pod: "b", Kind: Regular, Address: older.Address, Table: 2,
		Further: []Further{{netip.MustParseAddr("192.168.48.64"), 10101}, {netip.MustParseAddr("192.168.49.64"), 0}}}
	lines := func(boxes ...Sandbox) []string {
		out := slices.Clone(before)
		for _, s := range boxes {
			for _, o := range (&box{Sandbox: s}).objects() {
				out = append(out, o.line)
			}
		}
		return out
	}
	n := New(before)
	if w := n.Wrong(before); w != nil {
		t.Errorf("nothing is wrong with an empty node: %q", w)
	}
	n.Add(older)
	if w := n.Wrong(before); len(w) != len(lines(older))-1 || !n.Live("1") {
		t.Errorf("missing: %q", w)
	}
	if w := n.Wrong(append(lines(older), "rule of somebody's")); !slices.Equal(w, []string{"+ rule of somebody's"}) {
		t.Errorf("%q", w)
	}
	n.Add(newer)
	if n.Live("1") || !n.Live("2") {
		t.Error("the address is the newer one's")
	}
	if w := n.Wrong(lines(newer)); w != nil {
		t.Errorf("nothing need be left of the older one: %q", w)
	}
	if w := n.Wrong(lines(newer)[:len(lines(newer))-1]); len(w) != 1 {
		t.Errorf("a further interface lacks a line: %q", w)
	}
	// Strict pods' table still leads to the older one.
	if w := n.Wrong(lines(older, newer)); len(w) != 1 || !strings.HasSuffix(w[0], "table 510") {
		t.Errorf("%q", w)
	}
	n.Remove("1")
	if w := n.Wrong(lines(older, newer)); len(w) != len(lines(older))-1 {
		t.Errorf("left behind: %q", w)
	}
}
