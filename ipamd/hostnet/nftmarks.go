package hostnet

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	deviceChain  = "device-"
	strictPrefix = "vlan" // of branch pods' VLAN links, and of strict pods' host veths
)

// The maps of marksTable from source to device: single addresses are hashed, so that their number costs a packet
// nothing, while prefixes, which are few, are searched as intervals.
const (
	singleMap = iota
	rangeMap
)

func familyOf(ipv6 bool) nftables.TableFamily {
	if ipv6 {
		return nftables.TableFamilyIPv6
	}
	return nftables.TableFamilyIPv4
}

func addressType(ipv6 bool) nftables.SetDatatype {
	if ipv6 {
		return nftables.TypeIP6Addr
	}
	return nftables.TypeIPAddr
}

// marksTable is the table that marks packets before they are routed. Its flush costs speed, and for the moment until it
// is mended the way of what pods of secondary ENIs send out; it never lets a strict pod's packet past its VLAN, because
// no mark sends a packet there: the mark sends the others past it.
func marksTable(s Shape) nftTable {
	sets := []*nftables.Set{
		singleMap: {Name: "addresses", ID: 1, IsMap: true, KeyType: addressType(s.IPv6), DataType: nftables.TypeVerdict},
		rangeMap:  {Name: "prefixes", ID: 2, IsMap: true, Interval: true, KeyType: addressType(s.IPv6), DataType: nftables.TypeVerdict},
	}
	t := nftTable{name: MarksTable, family: familyOf(s.IPv6), sets: sets, chains: []nftChain{{
		name: "prerouting", hook: nftables.ChainHookPrerouting, kind: nftables.ChainTypeFilter,
		rules: [][]expr.Any{
			{iifname(), startsWith(strictPrefix, expr.CmpOpEq), verdict(expr.VerdictReturn)},
			setMark(NoBranchMark, NoBranchMark),
			{iifname(), startsWith(s.VethPrefix, expr.CmpOpNeq), verdict(expr.VerdictReturn)},
			bySource(s.IPv6, sets[singleMap]),
			bySource(s.IPv6, sets[rangeMap]),
		},
	}}}
	for n := range maxDevices {
		t.chains = append(t.chains, deviceChainOf(n))
	}
	for _, n := range s.further() {
		t.chains = append(t.chains, deviceChainOf(n))
	}
	return t
}

// deviceChainOf marks what leaves by the slot of this number.
func deviceChainOf(n int) nftChain {
	return nftChain{name: deviceChain + strconv.Itoa(n), rules: [][]expr.Any{setMark(markOf(n), ENIMask)}}
}

// bySource goes to the chain that the map has for the packet's source.
func bySource(ipv6 bool, set *nftables.Set) []expr.Any {
	offset, length := uint32(12), uint32(4)
	if ipv6 {
		offset, length = 8, 16
	}
	return []expr.Any{
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
	}
}

func iifname() expr.Any { return &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1} }

// startsWith compares only as many bytes of the name as the prefix has.
func startsWith(prefix string, op expr.CmpOp) expr.Any {
	return &expr.Cmp{Op: op, Register: 1, Data: []byte(prefix)}
}

func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// masked changes only the mask's bits of register 1.
func masked(value, mask uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(^mask), Xor: native(value)}
}

// setMark sets the mask's bits of the packet's mark to those of value.
func setMark(value, mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, masked(value, mask),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}

func element(p netip.Prefix, device int) nftables.SetElement {
	return nftables.SetElement{Key: p.Addr().AsSlice(), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: deviceChain + strconv.Itoa(device)}}
}

// singlesOf writes the single addresses among the prefixes.
func singlesOf(devices map[netip.Prefix]int) (out []nftables.SetElement) {
	for _, p := range sortedPrefixes(devices) {
		if p.IsSingleIP() {
			out = append(out, element(p, devices[p]))
		}
	}
	return out
}

// rangesOf writes the others as intervals: the first address, and the one behind the last.
func rangesOf(devices map[netip.Prefix]int) (out []nftables.SetElement) {
	for _, p := range sortedPrefixes(devices) {
		if p.IsSingleIP() {
			continue
		}
		out = append(out, element(p, devices[p]))
		if end := lastOf(p).Next(); end.IsValid() {
			out = append(out, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

func sortedPrefixes(devices map[netip.Prefix]int) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(devices))
	for p := range devices {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

// lastOf is a prefix's last address.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// parseElements reads both maps back as prefixes. ok is false when something is there that is not made here.
func parseElements(single, ranges []nftables.SetElement, ipv6 bool) (devices map[netip.Prefix]int, ok bool) {
	devices, ok = parseRanges(ranges, ipv6)
	for _, e := range single {
		a, valid := netip.AddrFromSlice(e.Key)
		device, known := parseVerdict(e.Val)
		if !valid || !known || a.Is4() == ipv6 {
			ok = false
			continue
		}
		devices[netip.PrefixFrom(a, a.BitLen())] = device
	}
	return devices, ok
}

func parseRanges(elements []nftables.SetElement, ipv6 bool) (devices map[netip.Prefix]int, ok bool) {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := strings.Compare(string(a.Key), string(b.Key)); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		}
		if a.IntervalEnd {
			return -1 // the one before ends where the next begins
		}
		return 1
	})
	devices, ok = map[netip.Prefix]int{}, true
	for i, e := range elements {
		if e.IntervalEnd {
			continue
		}
		first, valid := netip.AddrFromSlice(e.Key)
		device, known := parseVerdict(e.Val)
		bits := first.BitLen()
		if i+1 < len(elements) && elements[i+1].IntervalEnd {
			end, _ := netip.AddrFromSlice(elements[i+1].Key)
			for bits > 0 && lastOf(netip.PrefixFrom(first, bits)).Next() != end {
				bits--
			}
		} else {
			bits = 0 // it has no end, or another begins first
		}
		p := netip.PrefixFrom(first, bits)
		if !valid || !known || bits == 0 || p != p.Masked() || first.Is4() == ipv6 {
			ok = false
			continue
		}
		devices[p] = device
	}
	return devices, ok
}

// parseVerdict reads the attributes of a verdict for the chain that it goes to.
func parseVerdict(b []byte) (device int, ok bool) {
	for kind, value := range attributes(b) {
		if kind == unix.NFTA_VERDICT_CHAIN {
			name, found := strings.CutPrefix(strings.TrimRight(string(value), "\x00"), deviceChain)
			n, err := strconv.Atoi(name)
			return n, found && err == nil && n >= 0 && n < numbers
		}
	}
	return 0, false
}
