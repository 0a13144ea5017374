package hostnet

import (
	"fmt"
	"net/netip"
	"slices"
)

// Priorities of rules and numbers of tables. Those of upstream that other programs know are kept.
const (
	// PodsPriority is the rule that looks up the pods of this node; a miss falls through to the next rule.
	PodsPriority = 512
	// PodsTable holds one /32 per regular pod, by its host veth. The CNI executable fills it.
	PodsTable = 511
	// LocalTable is the kernel's. Its rule is born at LocalPriority. Strict branch pods need it behind their own
	// rules (priority 10), so that what one pod of the node sends to another passes the VLAN link: there it moves to
	// LocalPriorityStrict.
	LocalTable          = 255
	LocalPriority       = 0
	LocalPriorityStrict = 20
	// MainTable is where the primary ENI's routes are.
	MainTable = 254
	// ENIPriority is the rule for what the node itself sends from the primary address of a secondary ENI.
	ENIPriority = 32765
	// Protocol marks our rules and routes (rtm_protocol), so that only they are ever taken away.
	Protocol = 98
)

// Table is the routing table of the ENI with this device number on network card 0 (upstream's numbers).
func Table(device int) int {
	if device == 0 {
		return MainTable
	}
	return device + 1
}

// Rule is a routing rule in the form that this package makes.
type Rule struct {
	Priority int
	From     netip.Prefix // zero: all
	Table    int
	Ours     bool // carries Protocol
}

// Route is a route in an ENI's table.
type Route struct {
	Table     int
	Dst       netip.Prefix // 0.0.0.0/0 for the default route
	Gateway   netip.Addr   // zero: on link
	LinkIndex int
	Ours      bool
}

// ENI is one secondary ENI that pods may use.
type ENI struct {
	Device    int
	LinkIndex int
	Primary   netip.Addr // its primary address
	Gateway   netip.Addr
}

// Desired is what the host's routing should be.
type Desired struct {
	// LocalBehindPods is set while strict branch pods may run here.
	LocalBehindPods bool
	ENIs            []ENI
}

// Actual is what is there: all IPv4 rules, and the routes of the tables that belong to ENIs.
type Actual struct {
	Rules  []Rule
	Routes []Route
}

// Op is one change; exactly one of Rule and Route is set.
type Op struct {
	Delete bool
	Rule   *Rule
	Route  *Route
}

func (o Op) String() string {
	verb := "add"
	if o.Delete {
		verb = "delete"
	}
	if o.Rule != nil {
		from := "all"
		if o.Rule.From.IsValid() {
			from = o.Rule.From.String()
		}
		return fmt.Sprintf("%s rule %d: from %s lookup %d", verb, o.Rule.Priority, from, o.Rule.Table)
	}
	return fmt.Sprintf("%s route %s via %v in table %d on link %d", verb, o.Route.Dst, o.Route.Gateway, o.Route.Table, o.Route.LinkIndex)
}

// wanted expands what is desired to rules and routes.
func (d Desired) wanted() (rules []Rule, routes []Route) {
	local := LocalPriority
	if d.LocalBehindPods {
		local = LocalPriorityStrict
	}
	rules = []Rule{{Priority: local, Table: LocalTable}, {Priority: PodsPriority, Table: PodsTable}}
	for _, e := range d.ENIs {
		if e.Device == 0 {
			continue
		}
		t := Table(e.Device)
		if e.Primary.IsValid() {
			rules = append(rules, Rule{Priority: ENIPriority, From: netip.PrefixFrom(e.Primary, 32), Table: t})
		}
		routes = append(routes,
			Route{Table: t, Dst: netip.PrefixFrom(e.Gateway, 32), LinkIndex: e.LinkIndex},
			Route{Table: t, Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Gateway: e.Gateway, LinkIndex: e.LinkIndex})
	}
	return rules, routes
}

func (r Rule) same(o Rule) bool {
	r.Ours, o.Ours = false, false
	return r == o
}

func (r Route) same(o Route) bool {
	r.Ours, o.Ours = false, false
	return r == o
}

// Plan returns the changes that make the host's routing as desired, in the order in which they are safe: everything is
// added before anything is deleted, so that at no moment the node is without its local rule.
func Plan(d Desired, a Actual) []Op {
	rules, routes := d.wanted()
	var add, del []Op
	// Routes first: a rule that points at an empty table would let what it selects fall through.
	for _, r := range routes {
		if !slices.ContainsFunc(a.Routes, r.same) {
			add = append(add, Op{Route: &r})
		}
	}
	for _, r := range rules {
		if !slices.ContainsFunc(a.Rules, r.same) {
			add = append(add, Op{Rule: &r})
		}
	}
	for _, r := range a.Rules {
		if slices.ContainsFunc(rules, r.same) {
			continue
		}
		// The local rule is the kernel's, and may stand at either of two places; nowhere else is it ours to touch.
		local := r.Table == LocalTable && !r.From.IsValid() && (r.Priority == LocalPriority || r.Priority == LocalPriorityStrict)
		if local || r.Ours {
			del = append(del, Op{Delete: true, Rule: &r})
		}
	}
	for _, r := range a.Routes {
		if r.Ours && !slices.ContainsFunc(routes, r.same) {
			del = append(del, Op{Delete: true, Route: &r})
		}
	}
	return append(add, del...)
}

// Apply returns what a is after ops; it is the model that tests of Plan use.
func (a Actual) Apply(ops []Op) Actual {
	a = Actual{slices.Clone(a.Rules), slices.Clone(a.Routes)}
	for _, o := range ops {
		switch {
		case o.Rule != nil && o.Delete:
			a.Rules = slices.DeleteFunc(a.Rules, o.Rule.same)
		case o.Rule != nil:
			a.Rules = append(a.Rules, Rule{o.Rule.Priority, o.Rule.From, o.Rule.Table, true})
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
