package hostnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Rule is a routing rule in the form that this package makes. All of its selectors must hold.
type Rule struct {
	Priority int
	From, To netip.Prefix // zero: all
	Iif      string       // "": all
	// Mark and Mask select by the packet's mark; Mask 0: any.
	Mark, Mask uint32
	IPProto    int // IP protocol; 0: any
	Goto       int // priority to go on at, instead of a table
	Table      int
	Ours       bool // carries Protocol
}

func (r Rule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "rule %d:", r.Priority)
	if r.From.IsValid() {
		fmt.Fprintf(&b, " from %s", r.From)
	}
	if r.To.IsValid() {
		fmt.Fprintf(&b, " to %s", r.To)
	}
	if r.Iif != "" {
		fmt.Fprintf(&b, " iif %s", r.Iif)
	}
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.IPProto != 0 {
		fmt.Fprintf(&b, " ipproto %d", r.IPProto)
	}
	if r.Goto != 0 {
		fmt.Fprintf(&b, " goto %d", r.Goto)
	} else {
		fmt.Fprintf(&b, " lookup %d", r.Table)
	}
	return b.String()
}

// isLocal says whether this is the kernel's local rule, at either of its two places.
func (r Rule) isLocal() bool {
	at := r.Priority
	r.Ours, r.Priority = false, 0
	return r == Rule{Table: LocalTable} && (at == LocalPriority || at == LocalPriorityStrict)
}

// Route is a route in an ENI's table.
type Route struct {
	Table     int
	Dst       netip.Prefix // 0.0.0.0/0 or ::/0 for the default route
	Gateway   netip.Addr   // zero: on link
	LinkIndex int
	Ours      bool
}

func (r Route) String() string {
	via := ""
	if r.Gateway.IsValid() {
		via = " via " + r.Gateway.String()
	}
	return fmt.Sprintf("route %s%s in table %d on link %d", r.Dst, via, r.Table, r.LinkIndex)
}

// ENI is one ENI that pods may use, the primary one (device 0 of card 0) among them.
type ENI struct {
	Card      int
	Device    int
	LinkIndex int
	Primary   netip.Addr // its primary address
	Gateway   netip.Addr
	// Prefixes are the addresses that its pods may have.
	Prefixes []netip.Prefix
}

// Slot is where it is attached.
func (e ENI) Slot() Slot { return Slot{e.Card, e.Device} }

// Holds says whether an address is among those that its pods may have.
func (e ENI) Holds(addr netip.Addr) bool {
	return slices.ContainsFunc(e.Prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// Desired is what the host's routing should be, for the one family that pods have.
type Desired struct {
	IPv6 bool
	// LocalBehindPods is set while strict branch pods may run here.
	LocalBehindPods bool
	// NodeLocal are the destinations that strict pods reach on this node, past their VLAN.
	NodeLocal []netip.Prefix
	// KubeletLocal keeps the kubelet's own connections to strict pods on the node.
	KubeletLocal bool
	// VethPrefix starts the names of the host veths of regular pods.
	VethPrefix string
	ENIs       []ENI
	// InUse are the slots of ENIs whose addresses pods hold. Nothing of theirs is taken away, also while no source shows the
	// ENI.
	InUse []Slot
	// NAT is what is translated, and which answers leave by the primary ENI.
	NAT NAT
	// External are destinations that are reached by the main table, whichever ENI the pod has.
	External []netip.Prefix
	// Egress are egress-cni's addresses, of the family that pods don't have; not valid where that plugin is not used.
	Egress netip.Prefix
}

// Actual is what is there: rules and routes of one family, the routes only of the tables that belong to ENIs.
type Actual struct {
	Rules  []Rule
	Routes []Route
	Marks  Marks
	Tables Tables
}

// Op is one change; exactly one of Rule, Route, Marks and Table is set.
type Op struct {
	Delete bool
	Rule   *Rule
	Route  *Route
	Marks  *MarksChange
	Table  *TableChange
}

func (o Op) String() string {
	verb := "add "
	if o.Delete {
		verb = "delete "
	}
	switch {
	case o.Rule != nil:
		return verb + o.Rule.String()
	case o.Route != nil:
		return verb + o.Route.String()
	case o.Table != nil:
		return o.Table.String()
	}
	return o.Marks.String()
}

func (d Desired) bits() int {
	if d.IPv6 {
		return 128
	}
	return 32
}

func (d Desired) everything() netip.Prefix {
	if d.IPv6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func (d Desired) family(a netip.Addr) bool { return a.IsValid() && a.Is4() != d.IPv6 }

const (
	loopback = "lo"
	icmpv6   = 58
)

// strictRules are those that exist only while strict pods may run.
func (d Desired) strictRules() (rules []Rule) {
	for _, p := range d.NodeLocal {
		if d.family(p.Addr()) {
			rules = append(rules,
				Rule{Priority: NodeLocalPriority, To: p.Masked(), Table: LocalTable},
				Rule{Priority: NodeLocalPriority, From: p.Masked(), Iif: loopback, Table: StrictPodsTable})
		}
	}
	if d.IPv6 {
		// The router's neighbour advertisements are for this node, which asked for them on the VLAN link.
		rules = append(rules, Rule{Priority: NodeLocalPriority, From: netip.PrefixFrom(RouterIPv6, 128), IPProto: icmpv6, Table: LocalTable})
	}
	if d.KubeletLocal {
		rules = append(rules,
			Rule{Priority: KubeletPriority, Mark: KubeletMark, Mask: KubeletMark, Iif: loopback, Table: StrictPodsTable},
			Rule{Priority: KubeletPriority, Mark: KubeletMark, Mask: KubeletMark, Table: LocalTable})
	}
	return append(rules,
		Rule{Priority: SkipPriority, Iif: loopback, Goto: LocalPriorityStrict},
		Rule{Priority: SkipPriority, Mark: NoBranchMark, Mask: NoBranchMark, Goto: LocalPriorityStrict})
}

// wanted expands what is desired to rules and routes, in the order in which they are to be added: what another refers
// to comes first.
func (d Desired) wanted() (rules []Rule, routes []Route) {
	if d.LocalBehindPods {
		rules = append([]Rule{{Priority: LocalPriorityStrict, Table: LocalTable}}, d.strictRules()...)
	} else {
		rules = []Rule{{Priority: LocalPriority, Table: LocalTable}}
	}
	rules = append(rules, Rule{Priority: PodsPriority, Table: PodsTable})
	for _, p := range sorted(d.External) {
		if d.family(p.Addr()) {
			rules = append(rules, Rule{Priority: ExternalPriority, To: p, Table: MainTable})
		}
	}
	// This rule needs nothing but the number, so it is put back also while no source shows the ENI. The primary one's is
	// what NAT sends its connections by.
	for _, s := range d.slots() {
		if s.number() >= 0 {
			rules = append(rules, markRule(s))
		}
	}
	for _, e := range d.ENIs {
		t := e.Slot().Table()
		if t == MainTable {
			continue
		}
		if d.family(e.Primary) {
			rules = append(rules, Rule{Priority: ENIPriority, From: netip.PrefixFrom(e.Primary, d.bits()), Table: t})
		}
		if d.family(e.Gateway) {
			routes = append(routes,
				Route{Table: t, Dst: netip.PrefixFrom(e.Gateway, d.bits()), LinkIndex: e.LinkIndex},
				Route{Table: t, Dst: d.everything(), Gateway: e.Gateway, LinkIndex: e.LinkIndex})
		}
	}
	return rules, routes
}

// markRule sends what carries the mark of a slot's ENI out by it.
func markRule(s Slot) Rule {
	r := Rule{Priority: MarkPriority, Mark: s.Mark(), Mask: ENIMask, Table: s.Table()}
	if s == (Slot{}) {
		r.Priority = PrimaryPriority
	}
	return r
}

// slots are those of the ENIs that something is sent to by its mark, in order.
func (d Desired) slots() (out []Slot) {
	out = slices.Clone(d.InUse)
	for _, e := range d.ENIs {
		out = append(out, e.Slot())
	}
	if d.NAT.Source || d.NAT.NodePort {
		out = append(out, Slot{})
	}
	slices.SortFunc(out, func(a, b Slot) int { return cmp.Or(cmp.Compare(a.Card, b.Card), cmp.Compare(a.Device, b.Device)) })
	return slices.Compact(out)
}

// kept says whether a table is that of an ENI that pods use and no source shows: nothing of it is taken away.
func (d Desired) kept(table int) bool {
	for _, s := range d.InUse {
		if s.Table() == table {
			return !slices.ContainsFunc(d.ENIs, func(e ENI) bool { return e.Slot() == s })
		}
	}
	return false
}

func (r Rule) same(o Rule) bool {
	r.Ours, o.Ours = false, false
	return r == o
}

func (r Route) same(o Route) bool {
	r.Ours, o.Ours = false, false
	return r == o
}

// Plan returns the changes that make the host's routing as desired, in the order in which they are safe, for the agent
// may end after each of them: everything is added before anything is deleted, so that at no moment the node is without
// its local rule; a rule is added after what it refers to and deleted before it; an ENI's mark is set only while the
// ENI's rule and routes are there; what is translated is so by a table that comes and goes as a whole.
func Plan(d Desired, a Actual) []Op {
	rules, routes := d.wanted()
	var ops []Op
	for _, r := range routes {
		if !slices.ContainsFunc(a.Routes, r.same) {
			ops = append(ops, Op{Route: &r})
		}
	}
	for _, r := range rules {
		if !slices.ContainsFunc(a.Rules, r.same) {
			ops = append(ops, Op{Rule: &r})
		}
	}
	if c, needed := planMarks(d, a.Marks); needed {
		ops = append(ops, Op{Marks: &c})
	}
	for _, c := range planTables(d, a.Tables) {
		ops = append(ops, Op{Table: &c})
	}
	var last []Op
	for _, r := range a.Rules {
		if slices.ContainsFunc(rules, r.same) || d.kept(r.Table) {
			continue
		}
		switch {
		case r.isLocal(): // the kernel's or an older version's; nowhere else is a local rule ours to touch
			last = append(last, Op{Delete: true, Rule: &r})
		case r.Ours:
			ops = append(ops, Op{Delete: true, Rule: &r})
		}
	}
	ops = append(ops, last...)
	for _, r := range a.Routes {
		if r.Ours && !slices.ContainsFunc(routes, r.same) && !d.kept(r.Table) {
			ops = append(ops, Op{Delete: true, Route: &r})
		}
	}
	return ops
}

// Apply returns what a is after ops; it is the model that tests of Plan use.
func (a Actual) Apply(ops []Op) Actual {
	a = Actual{slices.Clone(a.Rules), slices.Clone(a.Routes), a.Marks, a.Tables}
	for _, o := range ops {
		switch {
		case o.Marks != nil:
			a.Marks = a.Marks.apply(*o.Marks)
		case o.Table != nil:
			a.Tables = a.Tables.apply(*o.Table)
		case o.Rule != nil && o.Delete:
			a.Rules = slices.DeleteFunc(a.Rules, o.Rule.same)
		case o.Rule != nil:
			r := *o.Rule
			r.Ours = true
			a.Rules = append(a.Rules, r)
		case o.Delete:
			a.Routes = slices.DeleteFunc(a.Routes, o.Route.same)
		default:
			r := *o.Route
			r.Ours = true
			a.Routes = append(a.Routes, r)
		}
	}
	return a
}
