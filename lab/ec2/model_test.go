package ec2

import (
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// direct calls an operation without HTTP and signatures, as the operator.
func direct(r *Region, api string, kv ...string) ([]element, error) {
	form := url.Values{}
	for i := 0; i+1 < len(kv); i += 2 {
		form.Set(kv[i], kv[i+1])
	}
	p, err := parseForm(form.Encode())
	if err != nil {
		return nil, err
	}
	c := &call{Region: r, api: api, op: operations[api], p: p, now: r.cfg.Now(), who: principal{arn: "test"}}
	return r.do(c)
}

func text(els []element, path ...string) string {
	for _, e := range els {
		if e.name != path[0] {
			continue
		}
		if len(path) == 1 {
			return e.text
		}
		return text(e.kids, path[1:]...)
	}
	return ""
}

// TestNoSequenceOfCallsBreaksTheInvariants plays random calls and checks after each: an address belongs to one ENI of its
// subnet and is accounted for, a VLAN id is given once per trunk, device indexes are unique, limits of types hold, and
// every reference leads somewhere.
func TestNoSequenceOfCallsBreaksTheInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := New(Config{Limits: NoRequestLimits(), Now: func() time.Time { return time.Unix(1e9, 0) }})
		defer r.Close()
		set := func(out []element, err error) []element {
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		vpcID := text(set(direct(r, "CreateVpc", "CidrBlock", "10.0.0.0/16")), "vpc", "vpcId")
		subnetID := text(set(direct(r, "CreateSubnet", "VpcId", vpcID, "CidrBlock", "10.0.0.0/27")), "subnet", "subnetId")

		anENI := func(t *rapid.T) string {
			ids := []string{"eni-none"}
			for _, e := range sortedValues(r.enis) {
				ids = append(ids, e.id)
			}
			return rapid.SampledFrom(ids).Draw(t, "eni")
		}
		anInstance := func(t *rapid.T) string {
			ids := []string{"i-none"}
			for _, i := range sortedValues(r.instances) {
				ids = append(ids, i.id)
			}
			return rapid.SampledFrom(ids).Draw(t, "instance")
		}
		small := func(t *rapid.T, name string) string { return strconv.Itoa(rapid.IntRange(0, 4).Draw(t, name)) }
		try := func(api string, kv ...string) func() {
			return func() { _, _ = direct(r, api, kv...) } // refusals are fine: the invariants are what counts
		}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				kind := rapid.SampledFrom([]string{"interface", "trunk", "trunk", "branch"}).Draw(t, "kind")
				count := rapid.SampledFrom([]string{"SecondaryPrivateIpAddressCount", "Ipv4PrefixCount"}).Draw(t, "what")
				try("CreateNetworkInterface", "SubnetId", subnetID, "InterfaceType", kind, count, small(t, "more"))()
			},
			"run": func(t *rapid.T) {
				typ := rapid.SampledFrom([]string{"m5.large", "t3.medium"}).Draw(t, "type")
				try("RunInstances", "InstanceType", typ, "SubnetId", subnetID)()
			},
			"terminate": func(t *rapid.T) { try("TerminateInstances", "InstanceId.1", anInstance(t))() },
			"attach": func(t *rapid.T) {
				try("AttachNetworkInterface", "NetworkInterfaceId", anENI(t), "InstanceId", anInstance(t), "DeviceIndex", small(t, "device"))()
			},
			"detach": func(t *rapid.T) {
				if e := r.enis[anENI(t)]; e != nil && e.att != nil {
					try("DetachNetworkInterface", "AttachmentId", e.att.id)()
				}
			},
			"delete": func(t *rapid.T) { try("DeleteNetworkInterface", "NetworkInterfaceId", anENI(t))() },
			"associate": func(t *rapid.T) {
				try("AssociateTrunkInterface", "BranchInterfaceId", anENI(t), "TrunkInterfaceId", anENI(t), "VlanId", small(t, "vlan"))()
			},
			"disassociate": func(t *rapid.T) {
				if e := r.enis[anENI(t)]; e != nil && e.assoc != nil {
					try("DisassociateTrunkInterface", "AssociationId", e.assoc.id)()
				}
			},
			"assign": func(t *rapid.T) {
				count := rapid.SampledFrom([]string{"SecondaryPrivateIpAddressCount", "Ipv4PrefixCount"}).Draw(t, "what")
				try("AssignPrivateIpAddresses", "NetworkInterfaceId", anENI(t), count, small(t, "more"))()
			},
			"unassign": func(t *rapid.T) {
				e := r.enis[anENI(t)]
				switch {
				case e == nil:
				case len(e.prefixes) > 0 && rapid.Bool().Draw(t, "a prefix"):
					try("UnassignPrivateIpAddresses", "NetworkInterfaceId", e.id, "Ipv4Prefix.1", rapid.SampledFrom(e.prefixes).Draw(t, "prefix").String())()
				default:
					try("UnassignPrivateIpAddresses", "NetworkInterfaceId", e.id, "PrivateIpAddress.1", rapid.SampledFrom(e.addrs).Draw(t, "addr").String())()
				}
			},
			"": func(t *rapid.T) { checkInvariants(t, r) },
		})
	})
}

func checkInvariants(t *rapid.T, r *Region) {
	addrs, macs := make(map[netip.Addr]string), make(map[string]string)
	for _, e := range r.enis {
		s := r.subnets[e.subnetID]
		for _, a := range e.reach() {
			if other := addrs[a]; other != "" {
				t.Fatalf("%s has %s and %s", a, e.id, other)
			}
			addrs[a] = e.id
			if !s.assignable(a) || s.used[a] != e.id {
				t.Fatalf("%s of %s: assignable %v, booked for %q", a, e.id, s.assignable(a), s.used[a])
			}
		}
		if len(e.addrs) == 0 || macs[e.mac.String()] != "" {
			t.Fatalf("%s: addresses %v, MAC %s", e.id, e.addrs, e.mac)
		}
		macs[e.mac.String()] = e.id
		if e.att != nil && e.assoc != nil {
			t.Fatalf("%s is attached and associated", e.id)
		}
		if e.att != nil && (r.instances[e.att.instanceID] == nil || r.instances[e.att.instanceID].state == "terminated") {
			t.Fatalf("%s is attached to the gone %s", e.id, e.att.instanceID)
		}
		if e.assoc != nil {
			trunk := r.enis[e.assoc.trunkID]
			if trunk == nil || trunk.kind != "trunk" || trunk.att == nil || e.kind != "branch" {
				t.Fatalf("%s (%s) is associated with %+v", e.id, e.kind, trunk)
			}
		}
		vlans := make(map[int]bool)
		for _, b := range r.branches(e.id) {
			if vlans[b.assoc.vlan] {
				t.Fatalf("VLAN %d twice on %s", b.assoc.vlan, e.id)
			}
			vlans[b.assoc.vlan] = true
		}
	}
	for _, s := range r.subnets {
		if s.free() < 0 || len(s.used) != len(addrs) {
			t.Fatalf("%s: %d free, %d booked, %d in use", s.id, s.free(), len(s.used), len(addrs))
		}
	}
	for _, i := range r.instances {
		all, devices, trunks := r.attached(i.id), []int{}, 0
		for _, e := range all {
			if slices.Contains(devices, e.att.device) {
				t.Fatalf("device %d twice on %s", e.att.device, i.id)
			}
			devices = append(devices, e.att.device)
			if len(e.addrs)+len(e.prefixes) > i.typ.IPv4PerInterface {
				t.Fatalf("%s has %d addresses and %d prefixes on a %s", e.id, len(e.addrs), len(e.prefixes), i.typ.Name)
			}
			if e.kind == "trunk" {
				trunks++
				if n := len(r.branches(e.id)); n > i.typ.MaxBranchInterfaces {
					t.Fatalf("%d branches on a %s", n, i.typ.Name)
				}
			}
		}
		if len(all) > i.typ.MaxInterfaces || trunks > 1 {
			t.Fatalf("%d interfaces, %d trunks on a %s", len(all), trunks, i.typ.Name)
		}
	}
}
