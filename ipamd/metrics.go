package ipamd

import (
	"errors"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"

	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// Causes of waits within a request.
const (
	waitSandbox    = "sandbox"    // another request of the same sandbox
	waitPod        = "pod"        // the API server's word on the pod
	waitAnnotation = "annotation" // the branch ENI that the controller gives
	waitVLAN       = "vlan"       // the pod that had the VLAN id before
	waitAddress    = "address"    // a free address
	waitPast       = "past"       // connections of the address's last pod
	waitTrunk      = "trunk"      // the trunk's link, and the routing before it
)

// metrics are the agent's series. Those of the first part have the names, labels and meanings that dashboards of the AWS
// VPC CNI query; the others are new.
type metrics struct {
	adds       prometheus.Counter
	dels       *prometheus.CounterVec // reason
	errors     *prometheus.CounterVec // fn
	podENI     *prometheus.CounterVec // fn
	noAddress  prometheus.Counter
	reconciles *prometheus.CounterVec // fn
	inProgress *prometheus.GaugeVec   // fn

	requests *prometheus.HistogramVec // verb, kind, code
	waits    *prometheus.HistogramVec // cause
}

// requestBuckets reach from a wiring without any wait to ADD's deadline.
var requestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 90}

func newMetrics(reg *prometheus.Registry, a *Agent) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: requestBuckets}, labels)
	}
	m := &metrics{
		adds:       prometheus.NewCounter(prometheus.CounterOpts{Name: "awscni_add_ip_req_count", Help: "Requests for a pod's interface."}),
		dels:       counter("awscni_del_ip_req_count", "Requests that end a pod's interface.", "reason"),
		errors:     counter("awscni_ipamd_error_count", "Errors of the node agent by function.", "fn"),
		podENI:     counter("awscni_pod_eni_error_count", "Errors with branch ENIs by function.", "fn"),
		noAddress:  prometheus.NewCounter(prometheus.CounterOpts{Name: "awscni_no_available_ip_addresses", Help: "Pods that were not wired because no address was free."}),
		reconciles: counter("awscni_reconcile_count", "Rounds in which the view of the ENIs was read anew, or the host's routing was changed, by function.", "fn"),
		inProgress: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "awscni_ipamd_action_inprogress", Help: "What the node agent is at, by function."}, []string{"fn"}),
		requests:   histogram("awscni_request_duration_seconds", "Time that a pod's ADD or DEL took in the node agent, waits included, by kind of pod and gRPC code.", "verb", "kind", "code"),
		waits:      histogram("awscni_wait_seconds", "Time for which an ADD waited, by cause.", "cause"),
	}
	if reg == nil {
		return m
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "awscni_build_info", Help: "Always 1; the labels say which build runs.",
		ConstLabels: prometheus.Labels{"version": a.opt.Version, "goversion": runtime.Version()},
	})
	build.Set(1)
	reg.MustRegister(m.adds, m.dels, m.errors, m.podENI, m.noAddress, m.reconciles, m.inProgress, m.requests, m.waits, build, sizes{a})
	return m
}

func (m *metrics) failed(fn string) { m.errors.WithLabelValues(fn).Inc() }

// doing counts an action as in progress until the returned function is called.
func (m *metrics) doing(fn string) (done func()) {
	g := m.inProgress.WithLabelValues(fn)
	g.Inc()
	return g.Dec
}

// waited observes one wait of a request that began then.
func (m *metrics) waited(cause string, began time.Time) {
	m.waits.WithLabelValues(cause).Observe(time.Since(began).Seconds())
}

// Kinds of pods in the series of requests.
const (
	kindRegular = "regular"
	kindBranch  = "branch"
	kindUnknown = "unknown" // it was not found out, or nothing was there to end
)

func kindOf(al store.Allocation) string {
	switch {
	case al.Regular != nil:
		return kindRegular
	case al.Branch != nil:
		return kindBranch
	}
	return kindUnknown
}

// request observes a request's end.
func (m *metrics) request(verb, kind string, began time.Time, err error) {
	code := codes.OK
	if err != nil {
		code = statusOf(err).Code()
	}
	m.requests.WithLabelValues(verb, kind, code.String()).Observe(time.Since(began).Seconds())
	if err == nil {
		return
	}
	if kind == kindBranch {
		m.podENI.WithLabelValues(verb).Inc()
	}
	if errors.Is(err, store.ErrNoAddress) {
		m.noAddress.Inc()
	}
}

// sizes are the series that are read off the agent's view when somebody asks.
type sizes struct{ a *Agent }

type gauge struct {
	desc  *prometheus.Desc
	value func(sizesView) float64
}

func size(name, help string, value func(sizesView) int) gauge {
	return gauge{prometheus.NewDesc(name, help, nil, nil), func(v sizesView) float64 { return float64(value(v)) }}
}

var (
	perENI  = prometheus.NewDesc("awscni_assigned_ip_per_eni", "Addresses that regular pods hold, by ENI.", []string{"eni"}, nil)
	perCIDR = prometheus.NewDesc("awscni_assigned_ip_per_cidr", "Addresses that regular pods hold, by prefix or single address (/32) of an ENI.", []string{"cidr"}, nil)
)

var gauges = []gauge{
	size("awscni_eni_allocated", "ENIs attached to the instance.", func(v sizesView) int { return v.attached }),
	size("awscni_eni_max", "ENIs that the instance can have.", func(v sizesView) int { return v.most }),
	size("awscni_ip_max", "Addresses that regular pods of the instance can have, of the first network card.", func(v sizesView) int {
		if v.pool.IPv6 {
			return pool.Unit{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 80)}.Size()
		}
		n := v.pool.MaxENIs
		// With custom networking, or in a subnet that is kept out, the primary ENI gives pods none.
		if slices.ContainsFunc(v.pool.ENIs, func(e pool.ENI) bool { return e.Primary && e.Draining }) {
			n--
		}
		n *= v.pool.Places
		if v.pool.Prefixes {
			n *= pool.PrefixSize
		}
		return n
	}),
	size("awscni_total_ip_addresses", "Addresses of the instance's ENIs that are for pods.", func(v sizesView) int { return v.total }),
	size("awscni_total_ipv4_prefixes", "IPv4 prefixes of the instance's ENIs.", func(v sizesView) int { return v.prefixes[0] }),
	size("awscni_total_ipv6_prefixes", "IPv6 prefixes of the instance's ENIs; 65,536 addresses of each are counted.", func(v sizesView) int { return v.prefixes[1] }),
	size("awscni_assigned_ip_addresses", "Addresses that regular pods hold.", func(v sizesView) int { return v.assigned }),
	size("awscni_ip_free", "Addresses that can be given to a pod now: neither held nor resting nor being given back.", func(v sizesView) int { return v.free }),
	size("awscni_ip_cooling", "Addresses that rest before they are given again.", func(v sizesView) int { return len(v.store.Cooling) }),
	size("awscni_ip_leaving", "Addresses that are being given back to EC2, by themselves or in a prefix.", func(v sizesView) int { return v.leaving }),
	size("awscni_ip_held_by_unknown", "Addresses that are wired on this node to pods that this agent does not know: they are given to nobody.", func(v sizesView) int { return v.orphans }),
	size("awscni_pods_waiting_for_ip", "Regular pods that wait for an address at this moment.", func(v sizesView) int { return v.waiting }),
	size("awscni_branch_eni_assigned", "Interfaces of branch pods on this node.", func(v sizesView) int { return v.branches }),
	size("awscni_trunk_attached", "1 while a trunk ENI is attached.", func(v sizesView) int { return v.trunk }),
	size("awscni_ready", "1 while pods can be wired, as the agent's health says.", func(v sizesView) int { return v.ready }),
}

// sizesView is what the gauges are read off, taken once for all of them.
type sizesView struct {
	pool                                                                pool.Snapshot // of the first network card
	free, most, waiting                                                 int           // of all
	store                                                               store.View
	attached, total, assigned, leaving, branches, trunk, ready, orphans int
	byENI, byCIDR                                                       map[string]int
	prefixes                                                            [2]int // IPv4, IPv6
}

func (a *Agent) sizes() sizesView {
	pools := a.cardPools()
	v := sizesView{pool: pools[0].Snapshot, store: a.store.View(), attached: len(a.inventory.ENIs()), byENI: map[string]int{}, byCIDR: map[string]int{}}
	var all []pool.ENI
	for _, p := range pools {
		all = append(all, p.ENIs...)
		v.free += pool.Free(p.Snapshot)
		v.waiting = max(v.waiting, p.Waiting)
	}
	if v.most = pools[0].MaxENIs; a.opt.Config.MultiNIC {
		v.most = a.totalENIs()
	}
	for _, e := range all {
		for _, u := range e.Units {
			v.total += u.Size()
			v.assigned += u.InUse
			v.byENI[e.ID] += u.InUse
			v.byCIDR[u.Prefix.String()] += u.InUse
			if u.Leaving {
				v.leaving += u.Size()
			}
			switch {
			case !u.IsPrefix():
			case u.Prefix.Addr().Is4():
				v.prefixes[0]++
			default:
				v.prefixes[1]++
			}
		}
	}
	for _, al := range v.store.Allocations {
		if al.Branch != nil {
			v.branches++
		}
	}
	if _, ok := a.inventory.Trunk(); ok {
		v.trunk = 1
	}
	if a.serving() {
		v.ready = 1
	}
	a.mu.Lock()
	v.orphans = len(a.orphans)
	a.mu.Unlock()
	return v
}

// Describe implements prometheus.Collector.
func (s sizes) Describe(out chan<- *prometheus.Desc) {
	for _, g := range gauges {
		out <- g.desc
	}
	out <- perENI
	out <- perCIDR
}

// Collect implements prometheus.Collector.
func (s sizes) Collect(out chan<- prometheus.Metric) {
	v := s.a.sizes()
	for _, g := range gauges {
		out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(v))
	}
	for id, n := range v.byENI {
		out <- prometheus.MustNewConstMetric(perENI, prometheus.GaugeValue, float64(n), id)
	}
	for cidr, n := range v.byCIDR {
		out <- prometheus.MustNewConstMetric(perCIDR, prometheus.GaugeValue, float64(n), cidr)
	}
}
