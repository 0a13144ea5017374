package ipamd

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// metrics are the agent's series; the names are those that dashboards of the AWS VPC CNI query.
type metrics struct {
	adds   prometheus.Counter
	dels   *prometheus.CounterVec // reason
	errors *prometheus.CounterVec // fn
}

func newMetrics(reg *prometheus.Registry, a *Agent) *metrics {
	m := &metrics{
		adds:   prometheus.NewCounter(prometheus.CounterOpts{Name: "awscni_add_ip_req_count", Help: "Requests for a pod's interface."}),
		dels:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "awscni_del_ip_req_count", Help: "Requests that end a pod's interface."}, []string{"reason"}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "awscni_ipamd_error_count", Help: "Errors of the node agent by function."}, []string{"fn"}),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, f func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(f()) })
	}
	reg.MustRegister(m.adds, m.dels, m.errors,
		gauge("awscni_eni_allocated", "ENIs attached to the instance.", func() int { return len(a.inventory.ENIs()) }),
		gauge("awscni_eni_max", "ENIs that the instance can have.", a.maxENIs),
		gauge("awscni_ip_max", "Addresses that regular pods of the instance can have.", func() int {
			n := a.maxENIs() * max(0, a.limits().IPv4PerInterface-1)
			if a.usesPrefixes() {
				n *= pool.PrefixSize
			}
			return n
		}),
		gauge("awscni_total_ip_addresses", "Secondary addresses of the instance's ENIs.", func() (n int) {
			for _, e := range a.snapshot().ENIs {
				for _, u := range e.Units {
					n += u.Size()
				}
			}
			return n
		}),
		gauge("awscni_assigned_ip_addresses", "Addresses that regular pods hold.", func() (n int) {
			for _, e := range a.snapshot().ENIs {
				for _, u := range e.Units {
					n += u.InUse
				}
			}
			return n
		}),
		gauge("awscni_ip_cooling", "Addresses that rest before they are given again.", func() int { return len(a.store.View().Cooling) }),
		gauge("awscni_branch_eni_assigned", "Interfaces of branch pods on this node.", func() (n int) {
			for _, al := range a.store.View().Allocations {
				if al.Branch != nil {
					n++
				}
			}
			return n
		}),
		gauge("awscni_trunk_attached", "1 while a trunk ENI is attached.", func() int {
			if _, ok := a.inventory.Trunk(); ok {
				return 1
			}
			return 0
		}),
	)
	return m
}

func (m *metrics) failed(fn string) { m.errors.WithLabelValues(fn).Inc() }

// What follows is the shape of /v1/enis that the node's monitoring reads. containerID, ifName and networkName stay
// blank there, as it wants rules of ours that are not per pod where they are filled.
type introspectedKey struct {
	Network   string `json:"networkName"`
	Container string `json:"containerID"`
	Interface string `json:"ifName"`
}

type introspectedAddress struct {
	Address    string
	IPAMKey    introspectedKey
	AssignedAt time.Time `json:"AssignedTime"`
}

type introspectedENI struct {
	ID           string
	IsPrimary    bool
	IsTrunk      bool
	DeviceNumber int
	Addresses    map[string]introspectedAddress `json:"IPv4Addresses"`
}

type introspected struct {
	TotalIPs, AssignedIPs int
	ENIs                  map[string]introspectedENI
}

func (a *Agent) introspectENIs(w http.ResponseWriter, _ *http.Request) {
	held := map[string]store.Allocation{}
	for _, al := range a.store.View().Allocations {
		if al.Regular != nil {
			held[al.Regular.Address.String()] = al
		}
	}
	out := introspected{ENIs: map[string]introspectedENI{}}
	for _, e := range a.inventory.ENIs() {
		i := introspectedENI{ID: e.ID, IsPrimary: e.Primary(), IsTrunk: e.Trunk, DeviceNumber: e.Device, Addresses: map[string]introspectedAddress{}}
		for _, u := range e.Units() {
			for addr := u.Addr(); u.Contains(addr); addr = addr.Next() {
				out.TotalIPs++
				at := introspectedAddress{Address: addr.String()}
				if al, ok := held[addr.String()]; ok {
					out.AssignedIPs++
					at.AssignedAt = al.Since
				}
				i.Addresses[addr.String()] = at
			}
		}
		out.ENIs[e.ID] = i
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(out); err != nil {
		a.opt.Log.Debug("introspection was not read to its end", "error", err)
	}
}
