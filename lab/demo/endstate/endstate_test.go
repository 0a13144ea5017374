package endstate

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// cluster is a small end state whose ids, addresses and orders come from a seed.
type cluster struct {
	rand *rand.Rand
	// extra objects of a state that is not the expected one.
	netifs, objects, associations, links, rules, routes, files []string
}

func (c *cluster) id(prefix string) string {
	return fmt.Sprintf("%s-%017x", prefix, c.rand.Uint64N(1<<60))
}

func (c *cluster) list(items ...string) string {
	c.rand.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
	return "[" + strings.Join(items, ",") + "]"
}

func (c *cluster) outputs() Outputs {
	node, eni, warm, group := c.id("i"), c.id("eni"), c.id("eni"), c.id("sg")
	mac := func(n int) string {
		return fmt.Sprintf("06:%02x:%02x:00:00:%02x", c.rand.IntN(256), c.rand.IntN(256), n)
	}
	primary, second := fmt.Sprintf("192.168.1.%d", 4+c.rand.IntN(100)), fmt.Sprintf("192.168.2.%d", 4+c.rand.IntN(100))
	pod := fmt.Sprintf("192.168.3.%d", 4+c.rand.IntN(100))
	other := fmt.Sprintf("192.168.4.%d", 4+c.rand.IntN(100))
	macs := []string{mac(1), mac(2)}
	host := "ip-" + strings.ReplaceAll(primary, ".", "-") + ".us-west-2.compute.internal"
	veth := fmt.Sprintf("eni%011x", c.rand.Uint64N(1<<44))
	age := fmt.Sprintf("2026-11-22T%02d:00:00Z", c.rand.IntN(24))
	netif := func(id, mac, description string, index int, addresses ...string) string {
		var as []string
		for i, a := range addresses {
			as = append(as, fmt.Sprintf(`{"PrivateIpAddress":%q,"Primary":%t}`, a, i == 0))
		}
		return fmt.Sprintf(`{"NetworkInterfaceId":%q,"InterfaceType":"interface","Status":"in-use","Description":%q,"MacAddress":%q,
			"PrivateIpAddresses":[%s],"Groups":[{"GroupId":%q,"GroupName":"nodes"}],"TagSet":[{"Key":"created","Value":%q}],
			"Attachment":{"InstanceId":%q,"DeviceIndex":%d,"Status":"attached"}}`, id, description, mac, strings.Join(as, ","), group, age, node, index)
	}
	events := make([]string, 1+c.rand.IntN(4))
	for i := range events {
		events[i] = fmt.Sprintf(`{"kind":"Event","metadata":{"namespace":"default","name":"e%d"},"reason":"UnauthorizedOperation","involvedObject":{"kind":"Node"},"source":{"component":"vpc-resource-controller"},"count":%d}`, i, c.rand.IntN(9))
	}
	slots := make([]string, 1+c.rand.IntN(9))
	for i := range slots {
		slots[i] = fmt.Sprintf(`{"vlanID":%d,"state":"Free","since":%q}`, i+1, age)
	}
	objects := append(events,
		fmt.Sprintf(`{"kind":"Node","metadata":{"name":%q,"labels":{"kubernetes.io/hostname":%q}},"status":{"capacity":{"cpu":"%d","pods":"110","vpc.amazonaws.com/pod-eni":"0"},"conditions":[{"type":"Ready","status":"True","lastHeartbeatTime":%q}]}}`, host, host, c.rand.IntN(64), age),
		fmt.Sprintf(`{"kind":"BranchLedger","metadata":{"name":%q},"spec":{"nodeName":%q,"instanceID":%q,"capacity":9,"slots":[%s]}}`, node, host, node, strings.Join(slots, ",")),
		fmt.Sprintf(`{"kind":"Pod","metadata":{"namespace":"kube-system","name":"coredns-%x","labels":{"k8s-app":"kube-dns"}},"spec":{"nodeName":%q},"status":{"phase":"Running","podIP":%q,"conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"restartCount":%d}]}}`, c.rand.Uint32(), host, pod, c.rand.IntN(3)),
		fmt.Sprintf(`{"kind":"Lease","metadata":{"namespace":"kube-system","name":"apiserver-%x"},"spec":{"renewTime":%q}}`, c.rand.Uint64(), age),
		`{"kind":"Event","metadata":{"namespace":"default","name":"k"},"reason":"Killing","involvedObject":{"kind":"Pod"},"source":{"component":"kubelet"}}`,
	)
	return Outputs{
		Instances: []byte(fmt.Sprintf(`{"Reservations":[{"Instances":[{"InstanceId":%q,"InstanceType":"m5.large","State":{"Name":"running"},"Tags":[{"Key":"Name","Value":"node"}]}]}]}`, node)),
		Interfaces: []byte(`{"NetworkInterfaces":` + c.list(append(c.netifs,
			netif(eni, macs[0], "", 0, primary, pod), netif(warm, macs[1], "aws-K8S-"+node, 1, second, other))...) + `}`),
		Groups:       []byte(fmt.Sprintf(`{"SecurityGroups":[{"GroupId":%q,"GroupName":"nodes"}]}`, group)),
		Rules:        []byte(fmt.Sprintf(`{"SecurityGroupRules":[{"GroupId":%q,"IsEgress":false,"IpProtocol":"tcp","FromPort":53,"ToPort":53,"ReferencedGroupInfo":{"GroupId":%q}},{"GroupId":%q,"IsEgress":true,"IpProtocol":"-1","FromPort":-1,"ToPort":-1,"CidrIpv4":"%s/32"}]}`, group, group, group, primary)),
		Associations: []byte(`{"InterfaceAssociations":` + c.list(c.associations...) + `}`),
		Permissions:  []byte(fmt.Sprintf(`{"NetworkInterfacePermissions":[{"NetworkInterfaceId":%q,"Permission":"INSTANCE-ATTACH","PermissionState":{"State":"GRANTED"}}]}`, warm)),
		Objects:      []byte(`{"items":` + c.list(append(c.objects, objects...)...) + `}`),
		Hosts: []Host{{
			Name: "node",
			Links: []byte(c.list(append(c.links,
				fmt.Sprintf(`{"ifindex":%d,"ifname":"ens5","mtu":9001,"operstate":"UP","address":%q,"txqlen":1000}`, c.rand.IntN(9), macs[0]),
				fmt.Sprintf(`{"ifindex":%d,"ifname":"enp2s0","mtu":9001,"operstate":"UP","address":%q}`, c.rand.IntN(9), macs[1]),
				fmt.Sprintf(`{"ifname":%q,"mtu":9001,"operstate":"UP","address":%q,"linkinfo":{"info_kind":"veth"}}`, veth, mac(9)))...)),
			Rules: []byte(c.list(append(c.rules, `{"priority":0,"src":"all","table":"local"}`, fmt.Sprintf(`{"priority":32765,"src":%q,"table":"2"}`, second))...)),
			Routes: []byte(c.list(append(c.routes,
				fmt.Sprintf(`{"dst":%q,"dev":%q,"scope":"link","table":"511","flags":["linkdown"]}`, pod, veth),
				`{"dst":"default","gateway":"192.168.0.1","dev":"enp2s0","table":2,"flags":[]}`)...)),
			Neighbours: []byte(`[]`),
			Files:      []byte(strings.Join(append([]string{"f 600 root /var/run/aws-node/branchline.json"}, c.files...), "\n")),
		}},
	}
}

func textOf(t interface {
	Fatal(...any)
	Helper()
}, c cluster, seed uint64) string {
	t.Helper()
	c.rand = rand.New(rand.NewPCG(seed, 0))
	s, err := Text(c.outputs())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestWhatDiffersInEachRunMakesNoDifference(t *testing.T) {
	want := textOf(t, cluster{}, 1)
	rapid.Check(t, func(t *rapid.T) {
		if d := Diff(want, textOf(t, cluster{}, rapid.Uint64().Draw(t, "seed"))); d != "" {
			t.Fatal(d)
		}
	})
}

func TestWhatIsThereIsSaidByName(t *testing.T) {
	text := textOf(t, cluster{}, 3)
	for _, line := range []string{
		`eni:node/1 interface in-use attached index 1 "aws-K8S-node" addresses=2 groups=nodes tags=created`,
		`eni:node/1 INSTANCE-ATTACH GRANTED`,
		`sg:nodes from sg:nodes protocol tcp ports 53-53`,
		`sg:nodes to ip(eni:node/0)/32 protocol -1 ports -1--1`,
		`Node host:node ready=True capacity{pods=110 vpc.amazonaws.com/pod-eni=0} taints{} labels{kubernetes.io/hostname=host:node}`,
		`BranchLedger node host:node trunk= capacity=9 freeSlots=true otherSlots{} released=0 finalizers{}`,
		`Pod kube-system/pod:kube-dns Running ready=True`,
		`Event vpc-resource-controller Node UnauthorizedOperation`,
		`Lease kube-system/apiserver`,
		`link link(eni:node/1) operstate=UP mtu=9001 address=mac(eni:node/1)`,
		`rule priority=32765 src=ip(eni:node/1) table=2`,
		`route dev=link(eni:node/1) dst=default gateway=192.168.0.1 table=2`,
		`route dev=veth(pod:kube-dns) dst=ip(pod:kube-dns) scope=link table=511`,
		`file f 600 root /var/run/aws-node/branchline.json`,
	} {
		if strings.Count(text, line+"\n") != 1 {
			t.Errorf("%q is not there once:\n%s", line, text)
		}
	}
}

func TestWhateverIsLeftOverIsADifference(t *testing.T) {
	want := textOf(t, cluster{}, 1)
	for name, tt := range map[string]struct {
		c    cluster
		says string
	}{
		"a branch ENI": {cluster{netifs: []string{`{"NetworkInterfaceId":"eni-0123456789abcdef0","InterfaceType":"branch","Status":"available","Description":"aws-k8s-branch-eni","MacAddress":"06:aa:00:00:00:01","PrivateIpAddresses":[{"PrivateIpAddress":"192.168.9.9","Primary":true}]}`}},
			"== EC2: network interfaces\n+ detached:aws-k8s-branch-eni branch available not attached"},
		"an association": {cluster{associations: []string{`{"TrunkInterfaceId":"eni-1","BranchInterfaceId":"eni-2","VlanId":7}`}}, "+ eni-1 vlan 7 eni-2"},
		"a policy":       {cluster{objects: []string{`{"kind":"SecurityGroupPolicy","metadata":{"namespace":"default","name":"allow"}}`}}, "+ SecurityGroupPolicy default/allow"},
		"a pod that ends": {cluster{objects: []string{`{"kind":"Pod","metadata":{"namespace":"default","name":"p","deletionTimestamp":"2026-01-01T00:00:00Z","annotations":{"vpc.amazonaws.com/pod-eni":"[]"}},"status":{"phase":"Running"}}`}},
			"+ Pod default/pod:p is being deleted Running ready=none with a branch ENI"},
		"a slot that is not free": {cluster{objects: []string{`{"kind":"BranchLedger","metadata":{"name":"i-1"},"spec":{"slots":[{"vlanID":4,"state":"Cooling"}]}}`}}, "otherSlots{4:Cooling}"},
		"a Node's label":          {cluster{objects: []string{`{"kind":"Node","metadata":{"name":"n","labels":{"vpc.amazonaws.com/has-trunk-attached":"true"}}}`}}, "labels{vpc.amazonaws.com/has-trunk-attached=true}"},
		"an event of ours":        {cluster{objects: []string{`{"kind":"Event","metadata":{"name":"e"},"reason":"AllocationsLost","involvedObject":{"kind":"Node"},"source":{"component":"aws-node"}}`}}, "+ Event aws-node Node AllocationsLost"},
		"a VLAN link":             {cluster{links: []string{`{"ifname":"vlan.eth.1","link":"ens7","mtu":9001,"operstate":"UP","linkinfo":{"info_kind":"vlan","info_data":{"id":1}}}`}}, "+ link vlan.eth.1 kind=vlan vlan=1 operstate=UP mtu=9001 link=ens7"},
		"a rule":                  {cluster{rules: []string{`{"priority":10,"src":"all","iif":"vlan.eth.1","table":"101"}`}}, "+ rule iif=vlan.eth.1 priority=10 src=all table=101"},
		"a route":                 {cluster{routes: []string{`{"dst":"192.168.9.9","dev":"eni1","table":"101"}`}}, "+ route dev=eni1 dst=192.168.9.9 table=101"},
		"a file":                  {cluster{files: []string{"f 600 root /var/run/aws-node/branchline.json.damaged"}}, "== host node\n+ file f 600 root /var/run/aws-node/branchline.json.damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			if d := Diff(want, textOf(t, tt.c, 2)); !strings.Contains(d, tt.says) || strings.Contains(d, "\n- ") {
				t.Errorf("the difference is %q, want %q in it and nothing gone", d, tt.says)
			}
		})
	}
}

func TestPodsOfANodeThatIsGoneAreNotWaitedFor(t *testing.T) {
	gone := cluster{objects: []string{`{"kind":"Pod","metadata":{"namespace":"default","name":"p"},"spec":{"nodeName":"gone"},"status":{"phase":"Running"}}`}}
	if d := Diff(textOf(t, cluster{}, 1), textOf(t, gone, 2)); d != "" {
		t.Error(d)
	}
}

func TestWhatCanNotBeReadIsNamed(t *testing.T) {
	c := cluster{rand: rand.New(rand.NewPCG(1, 0))}
	whole := c.outputs()
	for what, spoil := range map[string]func(*Outputs){
		"trunk associations": func(o *Outputs) { o.Associations = []byte("Unable to connect") },
		"API objects":        func(o *Outputs) { o.Objects = nil },
		"routes of host node": func(o *Outputs) {
			o.Hosts = []Host{o.Hosts[0]}
			o.Hosts[0].Routes = []byte("{")
		},
	} {
		o := whole
		spoil(&o)
		if _, err := Text(o); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDiffShowsLinesUnderTheirSection(t *testing.T) {
	want := "== a\n1\n2\n== b\n3\n4\n"
	for got, diff := range map[string]string{
		want:                       "",
		"== a\n1\n2\n== b\n3\n":    "  == b\n- 4\n",
		"== a\n2\n== b\n3\n4\n5\n": "  == a\n- 1\n  == b\n+ 5\n",
		"":                         "- == a\n- 1\n- 2\n- == b\n- 3\n- 4\n",
	} {
		if d := Diff(want, got); d != diff {
			t.Errorf("for %q: %q, want %q", got, d, diff)
		}
	}
}

// Whatever a program prints, reading it ends with a text or an error.
func FuzzText(f *testing.F) {
	c := cluster{rand: rand.New(rand.NewPCG(1, 0))}
	o := c.outputs()
	f.Add(o.Interfaces, o.Objects, o.Hosts[0].Links, o.Hosts[0].Routes, o.Hosts[0].Files)
	f.Fuzz(func(t *testing.T, interfaces, objects, links, routes, files []byte) {
		o := o
		o.Interfaces, o.Objects = interfaces, objects
		o.Hosts = []Host{{Name: "node", Links: links, Rules: []byte("[]"), Routes: routes, Neighbours: []byte("[]"), Files: files}}
		_, err := Text(o)
		if ok := json.Valid(interfaces) && json.Valid(objects) && json.Valid(links) && json.Valid(routes); err == nil && !ok {
			t.Error("read what is not JSON")
		}
	})
}
