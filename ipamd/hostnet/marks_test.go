package hostnet

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// asRead is what the kernel answers for an element: a verdict comes as attributes.
func asRead(elements []nftables.SetElement) []nftables.SetElement {
	out := slices.Clone(elements)
	for i, e := range out {
		if e.VerdictData != nil {
			name := e.VerdictData.Chain + "\x00"
			b := binary.NativeEndian.AppendUint16(nil, 8)
			b = append(binary.NativeEndian.AppendUint16(b, unix.NFTA_VERDICT_CODE), 0xff, 0xff, 0xff, 0xfc)
			b = binary.NativeEndian.AppendUint16(b, uint16(4+len(name)))
			out[i].Val = append(binary.NativeEndian.AppendUint16(b, unix.NFTA_VERDICT_CHAIN), name...)
		}
	}
	return out
}

func TestIntervalsAreReadBackAsThePrefixesThatWereWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ipv6 := rapid.Bool().Draw(t, "IPv6")
		d := Desired{IPv6: ipv6, VethPrefix: "eni"}
		for device := range 3 {
			e := ENI{Device: device}
			for range rapid.IntRange(0, 12).Draw(t, "prefixes") {
				a := addressOf(ipv6, rapid.IntRange(0, 2).Draw(t, "block"), rapid.IntRange(0, 40).Draw(t, "n")).Addr()
				e.Prefixes = append(e.Prefixes, netip.PrefixFrom(a, a.BitLen()-rapid.SampledFrom([]int{0, 0, 1, 4}).Draw(t, "size")))
			}
			d.ENIs = append(d.ENIs, e)
		}
		want := d.devices(nil)
		for a := range want {
			for b := range want {
				if a != b && a.Overlaps(b) {
					t.Fatalf("%s and %s overlap", a, b)
				}
			}
		}
		for _, e := range d.ENIs {
			for _, p := range e.Prefixes {
				if !slices.ContainsFunc(slices.Collect(maps.Keys(want)), func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Overlaps(p) }) {
					t.Fatalf("%s is not covered by %v", p, want)
				}
			}
		}
		single := rapid.Permutation(asRead(singlesOf(want))).Draw(t, "order")
		ranges := rapid.Permutation(asRead(rangesOf(want))).Draw(t, "order of ranges")
		got, ok := parseElements(single, ranges, ipv6)
		if !ok || !maps.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, ok, want)
		}
	})
}

func TestElementsThatAreNotOursAreNoticed(t *testing.T) {
	one := asRead(singlesOf(map[netip.Prefix]int{netip.MustParsePrefix("10.0.0.1/32"): 1}))
	many := asRead(rangesOf(map[netip.Prefix]int{netip.MustParsePrefix("10.0.0.16/28"): 1}))
	foreign := slices.Clone(one)
	foreign[0].Val = asRead([]nftables.SetElement{{VerdictData: &expr.Verdict{Chain: "elsewhere"}}})[0].Val
	odd := slices.Clone(many)
	odd[1].Key = []byte{10, 0, 0, 21} // not a prefix
	for name, e := range map[string][2][]nftables.SetElement{
		"another chain": {foreign, nil}, "another chain for a range": {nil, []nftables.SetElement{{Key: many[0].Key, Val: foreign[0].Val}, many[1]}},
		"an odd range": {nil, odd}, "no end": {nil, many[:1]}, "nothing of a key": {{{Val: one[0].Val}}, nil},
	} {
		if got, ok := parseElements(e[0], e[1], false); ok {
			t.Errorf("%s: read as %v", name, got)
		}
	}
	if _, ok := parseElements(asRead(singlesOf(map[netip.Prefix]int{addressOf(true, 1, 1): 1})), nil, false); ok {
		t.Error("an address of the other family was taken")
	}
}

func TestTheFingerprintTellsShapesApart(t *testing.T) {
	seen := map[string]nftTable{}
	for _, table := range []nftTable{marksTable(Shape{VethPrefix: "eni"}), marksTable(Shape{IPv6: true, VethPrefix: "eni"}), marksTable(Shape{VethPrefix: "pod"}),
		marksTable(Shape{VethPrefix: "eni", Further: "16"}), marksTable(Shape{VethPrefix: "eni", Further: "16 23"}), kubeletTable(false)} {
		print, err := table.fingerprint()
		if err != nil {
			t.Fatal(err)
		}
		if _, again := seen[print]; again || len(table.comment(print, 10)) > 120 {
			t.Errorf("%s: %q", table.name, print)
		}
		seen[print] = table
		if same, _ := table.fingerprint(); same != print {
			t.Error("it changes by itself")
		}
	}
}

func FuzzParseVerdict(f *testing.F) {
	for _, e := range asRead(singlesOf(map[netip.Prefix]int{netip.MustParsePrefix("10.0.0.1/32"): 15})) {
		f.Add(e.Val)
	}
	f.Add([]byte("\x0e\x00\x02\x000000007000")) // of no number that a slot has
	f.Fuzz(func(t *testing.T, b []byte) {
		if device, ok := parseVerdict(b); ok && (markOf(device)&^ENIMask != 0 || slotOf(device).number() != device) {
			t.Errorf("device %d", device)
		}
	})
}
