package ipamd

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	corev1 "k8s.io/api/core/v1"

	"github.com/branchline-cni/branchline/ipamd/config"
)

// logged is the agent's log, as a file's reader has it at any moment.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// line is the last line of a message, as its attributes.
func (l *logged) line(msg string) (found map[string]any) {
	lines := bufio.NewScanner(strings.NewReader(l.text()))
	for lines.Scan() {
		var attrs map[string]any
		if json.Unmarshal(lines.Bytes(), &attrs) == nil && attrs["msg"] == msg {
			found = attrs
		}
	}
	return found
}

// endpoint is where the agent serves something, as its log says.
func (w *world) endpoint(l *logged, what string) (addr string) {
	w.t.Helper()
	eventually(w.t, what+" is served", func() bool {
		served := 0
		for line := range strings.Lines(l.text()) {
			var attrs map[string]string
			if json.Unmarshal([]byte(line), &attrs) == nil && attrs["msg"] == "endpoint served" && attrs["endpoint"] == what {
				addr = attrs["address"]
				served++
			}
		}
		return served == w.starts // and not by a former run alone
	})
	return addr
}

func read(t *testing.T, c *http.Client, url string) []byte {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %s %v", url, r.Status, b, err)
	}
	return b
}

// eksMonitor is what EKS's node monitoring reads of an agent and concludes, restated from its documentation: each of broken
// has the node replaced.
type eksMonitor struct {
	log  *logged
	enis func() []byte
}

func (m eksMonitor) broken(t *testing.T) (why []string) {
	t.Helper()
	for _, text := range []string{"Unable to reach API Server", "Failed to check API server connectivity"} {
		if strings.Contains(m.log.text(), text) {
			why = append(why, "the log has "+text)
		}
	}
	if n := strings.Count(m.log.text(), "Starting L-IPAMD"); n >= 5 {
		why = append(why, fmt.Sprintf("started %d times", n))
	}
	var view struct {
		ENIs map[string]struct {
			AvailableIPv4Cidrs map[string]struct {
				Cidr        net.IPNet
				IPAddresses map[string]struct {
					Address string
					IPAMKey struct{ NetworkName, ContainerID, IfName string }
				}
			}
		}
	}
	if err := json.Unmarshal(m.enis(), &view); err != nil {
		t.Fatalf("/v1/enis: %v", err)
	}
	if len(view.ENIs) == 0 {
		why = append(why, "/v1/enis shows no ENI")
	}
	for id, e := range view.ENIs {
		for _, c := range e.AvailableIPv4Cidrs {
			for _, a := range c.IPAddresses {
				if k := a.IPAMKey; k.NetworkName != "" && k.ContainerID != "" && k.IfName != "" {
					why = append(why, fmt.Sprintf("there is no rule for %s of %s", a.Address, id))
				}
			}
		}
	}
	return why
}

const subnetFullText = "InsufficientFreeAddressesInSubnet"

func TestEKSMonitoringFindsNothingBrokenThroughFaultsThatPass(t *testing.T) {
	w := newWorld(t, pod("a", "ua"), branchPod("b", "ub", 7))
	l := &logged{}
	w.log = l
	w.env["ENABLE_POD_ENI"] = "true"
	var s service
	var stop func()
	m := eksMonitor{log: l}
	check := func(when string) {
		t.Helper()
		addr := w.endpoint(l, "introspection")
		m.enis = func() []byte { return read(t, http.DefaultClient, "http://"+addr+"/v1/enis") }
		if why := m.broken(t); len(why) > 0 {
			t.Errorf("%s: %q", when, why)
		}
	}
	for range 6 { // restarts
		s, stop = w.start()
		eventually(t, "the agent is ready", s.a.ready.Load)
		check("after a start")
		stop()
	}
	s, _ = w.start()
	eventually(t, "the agent is ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	mustAdd(t, s, addRequest("a", "ua", "ca"))
	mustAdd(t, s, addRequest("b", "ub", "cb"))
	check("with pods")

	w.noAPI.Store(true)
	if _, err := s.a.opt.Kube.LivePod(t.Context(), "default", "a"); err == nil {
		t.Fatal("the API server answers")
	}
	s.a.events.Node("Test", "an event that can't be sent")
	mustAdd(t, s, addRequest("a", "ua", "ca")) // goes on
	check("while the API server is away")
	w.noAPI.Store(false)

	if strings.Contains(l.text(), subnetFullText) {
		t.Error("the log says that the subnet is full, and it is not")
	}
}

// TestEKSMonitoringReadsThatTheSubnetIsFull: in the log by EC2's word for it, which it looks for, and on the node for people.
func TestEKSMonitoringReadsThatTheSubnetIsFull(t *testing.T) {
	w := newWorld(t)
	l := &logged{}
	w.log = l
	w.cloud.failed = &smithy.GenericAPIError{Code: subnetFullText, Message: "The specified subnet does not have enough free addresses."}
	w.start()
	eventually(t, "the log says it", func() bool { return strings.Contains(l.text(), subnetFullText) })
	eventually(t, "the node's events say it", func() bool {
		var events corev1.EventList
		if err := w.api.List(t.Context(), &events); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(events.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Kind == "Node" && e.Reason == "AddressesNotAvailable" && strings.Contains(e.Message, subnetFullText)
		})
	})
	addr := w.endpoint(l, "introspection")
	m := eksMonitor{l, func() []byte { return read(t, http.DefaultClient, "http://"+addr+"/v1/enis") }}
	eventually(t, "the ENIs are known", func() bool { return len(m.broken(t)) == 0 })
}

// TestEKSMonitoringFindsTheAgentByItsName: of a pod with the init container it wants a process of that name.
func TestEKSMonitoringFindsTheAgentByItsName(t *testing.T) {
	manifest, err := os.ReadFile("../config/aws-node/aws-node.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: aws-vpc-cni-init", "command: [/app/aws-k8s-agent]"} {
		if !strings.Contains(string(manifest), want) {
			t.Errorf("the manifest has no %q", want)
		}
	}
}

func TestIntrospectionBySocketByHTTPAndMetricsAgree(t *testing.T) {
	w := newWorld(t, pod("a", "ua"), pod("late", "ul"))
	l := &logged{}
	w.log, w.metricsAddr = l, "127.0.0.1:0"
	socket := filepath.Join(w.dir, "i")
	w.env["INTROSPECTION_BIND_ADDRESS"] = config.UnixPrefix + socket
	s, _ := w.start()
	eventually(t, "the agent is ready", s.a.ready.Load)
	mustAdd(t, s, addRequest("a", "ua", "ca"))
	if _, err := add(t, s, addRequest("nobody", "un", "cn")); err == nil {
		t.Fatal("a pod that nobody knows is wired")
	}
	w.endpoint(l, "introspection")
	unix := &http.Client{Transport: &http.Transport{DialContext: (&dialer{socket}).dial}}
	byHTTP := read(t, unix, "http://agent/v1/pods")
	bySocket := w.view(t, "pods")
	if !bytes.Equal(byHTTP, bySocket) || !strings.Contains(string(byHTTP), `"containerID":"ca"`) {
		t.Errorf("by HTTP %s\nby the agent's socket %s", byHTTP, bySocket)
	}
	for view, want := range map[string]string{"enis": `"AssignedIPs":1`, "networkutils-env-settings": `"AWS_VPC_K8S_CNI_CONNMARK":128`, "ipamd-env-settings": `"WARM_ENI_TARGET":1`} {
		if b := w.view(t, view); !strings.Contains(string(b), want) {
			t.Errorf("%s lacks %s: %s", view, want, b)
		}
	}
	metrics := string(read(t, http.DefaultClient, "http://"+w.endpoint(l, "metrics")+"/metrics"))
	for _, want := range []string{
		"awscni_assigned_ip_addresses 1\n", "awscni_add_ip_req_count 2\n", "awscni_ready 1\n", `awscni_assigned_ip_per_eni{eni="eni-1"} 1`,
		`awscni_request_duration_seconds_count{code="OK",kind="regular",verb="add"} 1`,
		`awscni_request_duration_seconds_count{code="NotFound",kind="unknown",verb="add"} 1`,
		`awscni_wait_seconds_count{cause="address"} 1`, `awscni_wait_seconds_count{cause="pod"} 2`, `awscni_build_info{goversion="go`,
		"awscni_eni_allocated ", "awscni_eni_max 3\n", "awscni_ip_max 27\n", "awscni_total_ip_addresses ", "awscni_total_ipv4_prefixes 0\n",
		"awscni_no_available_ip_addresses 0\n", `awscni_assigned_ip_per_cidr{cidr="`, `awscni_ipamd_action_inprogress{fn="add"} 0`,
		`awscni_reconcile_count{fn="nodeIPPoolReconcile"} `, `awscni_ipamd_error_count{fn="add"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %q", want)
		}
	}
	if t.Failed() {
		t.Log(metrics)
	}
	if line := l.line("add"); line["pod"] != "default/nobody" {
		t.Errorf("the last ADD's line: %v", line)
	}
}

// TestOneLineTellsAPodsOperationWhole: what a person looks for is in it.
func TestOneLineTellsAPodsOperationWhole(t *testing.T) {
	w := newWorld(t, pod("a", "ua"), branchPod("b", "ub", 7))
	l := &logged{}
	w.log, w.env["ENABLE_POD_ENI"] = l, "true"
	s, _ := w.start()
	eventually(t, "the agent is ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	regular := mustAdd(t, s, addRequest("a", "ua", "ca")).GetRegular()
	want := func(verb string, attrs map[string]any) {
		t.Helper()
		got := l.line(verb)
		for k, v := range attrs {
			if got[k] != v {
				t.Errorf("%s: %s is %v, want %v", verb, k, got[k], v)
			}
		}
		if d, err := time.ParseDuration(fmt.Sprint(got["took"])); err != nil || d <= 0 {
			t.Errorf("%s took %v", verb, got["took"])
		}
	}
	ofA := map[string]any{"pod": "default/a", "uid": "ua", "sandbox": "ca", "address": regular.GetAddress(), "eni": regular.GetEniId(), "level": "INFO"}
	want("add", ofA)
	mustAdd(t, s, addRequest("b", "ub", "cb"))
	want("add", map[string]any{"pod": "default/b", "sandbox": "cb", "vlan": 7.0, "eni": "eni-b7", "address": "192.168.47.7"})
	if _, err := s.Del(t.Context(), delRequest("ca")); err != nil {
		t.Fatal(err)
	}
	delete(ofA, "pod") // as the request has it
	delete(ofA, "uid")
	want("del", ofA)
}
