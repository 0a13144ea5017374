package ec2

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/lab/imds"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// clock is a hand-turned one.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestAnAPIIsThrottledByItsBucket(t *testing.T) {
	clk := newClock()
	l := *NoRequestLimits()
	l.API = map[string]Bucket{"DescribeTags": {Burst: 3, PerSecond: 1}}
	f := newFixture(t, Config{Now: clk.Now, Limits: &l})
	call := func() error {
		_, err := f.ec2.DescribeTags(f.ctx, &ec2.DescribeTagsInput{})
		return err
	}
	for range 3 {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	err := call()
	wantCode(t, err, "RequestLimitExceeded")
	if !aws.IsThrottled(err) {
		t.Error("not seen as throttled")
	}
	must(f.ec2.DescribeVpcs(f.ctx, &ec2.DescribeVpcsInput{}))(f) // another bucket
	clk.advance(2 * time.Second)
	if err := errors.Join(call(), call()); err != nil {
		t.Error(err)
	}
	wantCode(t, call(), "RequestLimitExceeded")
}

func TestRoleKeysExpire(t *testing.T) {
	clk := newClock()
	f := newFixture(t, Config{Now: clk.Now, CredentialLife: 2 * time.Minute})
	node := f.as("node")
	must(node.DescribeSubnets(f.ctx, &ec2.DescribeSubnetsInput{}))(f)
	clk.advance(3 * time.Minute)
	_, err := node.DescribeSubnets(f.ctx, &ec2.DescribeSubnetsInput{})
	wantCode(t, err, "RequestExpired")
	must(f.as("node").DescribeSubnets(f.ctx, &ec2.DescribeSubnetsInput{}))(f) // new keys
}

func TestAClockThatIsOffIsRefused(t *testing.T) {
	clk := newClock()
	f := newFixture(t, Config{Now: clk.Now})
	clk.advance(time.Hour)
	_, err := f.ec2.DescribeVpcs(f.ctx, &ec2.DescribeVpcsInput{})
	wantCode(t, err, "RequestExpired")
}

func TestFaultsHitTheCallsTheyAreWrittenFor(t *testing.T) {
	f := newFixture(t, Config{})
	node := f.as("node")
	free := f.free()
	f.region.Faults().Add(Fault{API: "CreateNetworkInterface", Role: "node", After: 1, Code: "InternalError"})
	create := func(c *ec2.Client) error {
		_, err := c.CreateNetworkInterface(f.ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: &f.subnet})
		return err
	}
	if err := errors.Join(create(f.ec2), create(node)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, create(node), "InternalError")
	if err := create(node); err != nil {
		t.Error(err)
	}
	if got := f.free(); got != free-3 {
		t.Errorf("%d free, want %d: the failed call may have no effect", got, free-3)
	}

	f.region.Faults().Add(Fault{API: "CreateNetworkInterface", Drop: true})
	if err := create(node); err == nil || aws.Code(err) != "" {
		t.Errorf("a dropped answer came as %v", err)
	}
	if got := f.free(); got != free-4 {
		t.Errorf("%d free, want %d: the dropped call takes effect", got, free-4)
	}
	remove := f.region.Faults().Add(Fault{API: "DeleteNetworkInterface", Times: -1, Code: "UnauthorizedOperation"})
	_, err := node.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: ptr("eni-0")})
	if action, _, _ := aws.Denied(err); action != "ec2:DeleteNetworkInterface" {
		t.Errorf("scripted refusal: %v", err)
	}
	remove()
	_, err = node.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: ptr("eni-0")})
	wantCode(t, err, "InvalidNetworkInterfaceID.NotFound")
	if n := f.region.Faults().Calls("DeleteNetworkInterface"); n != 2 {
		t.Errorf("%d calls counted, want 2", n)
	}
}

func TestADelayEndsWhenTheClientHangsUp(t *testing.T) {
	f := newFixture(t, Config{})
	f.region.Faults().Add(Fault{API: "CreateNetworkInterface", Delay: time.Hour})
	free := f.free()
	ctx, cancel := context.WithTimeout(f.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := f.ec2.CreateNetworkInterface(ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: &f.subnet}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if f.free() != free {
		t.Error("the call took effect")
	}
}

func TestTheAuditLogTellsWhoDidWhat(t *testing.T) {
	var log bytes.Buffer
	f := newFixture(t, Config{Audit: &log})
	_, err := f.as("node").DeleteSecurityGroup(f.ctx, &ec2.DeleteSecurityGroupInput{GroupId: &f.group})
	wantCode(t, err, "UnauthorizedOperation")
	lines := bytes.Split(bytes.TrimSpace(log.Bytes()), []byte("\n"))
	var e event
	if err := json.Unmarshal(lines[len(lines)-1], &e); err != nil {
		t.Fatal(err)
	}
	if e.EventName != "DeleteSecurityGroup" || e.ErrorCode != "UnauthorizedOperation" || e.EventSource != "ec2.amazonaws.com" ||
		e.UserIdentity.ARN != "arn:aws:sts::111122223333:assumed-role/node/"+f.instance || e.RequestParameters["GroupId"] != f.group {
		t.Errorf("%+v", e)
	}
	if _, secret := f.region.AdminCredentials(); bytes.Contains(log.Bytes(), []byte(secret)) {
		t.Error("the log has a secret")
	}
}

func TestTheSameCallsGiveTheSameTopology(t *testing.T) {
	a, b := newFixture(t, Config{Seed: "x"}), newFixture(t, Config{Seed: "x"})
	a.trunk()
	b.trunk()
	ja, _ := json.Marshal(a.region.Topology())
	jb, _ := json.Marshal(b.region.Topology())
	if !bytes.Equal(ja, jb) {
		t.Errorf("%s\n%s", ja, jb)
	}
}

// machines is a driver whose steps end when the test says so.
type machines struct {
	mu    sync.Mutex
	steps []string
	gate  chan error
}

func (m *machines) step(ctx context.Context, name string) error {
	m.mu.Lock()
	m.steps = append(m.steps, name)
	m.mu.Unlock()
	select {
	case err := <-m.gate:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *machines) Launch(ctx context.Context, i InstanceSpec) error   { return m.step(ctx, "launch") }
func (m *machines) Terminate(ctx context.Context, id string) error     { return m.step(ctx, "terminate") }
func (m *machines) Detach(ctx context.Context, id, eniID string) error { return m.step(ctx, "detach") }
func (m *machines) Attach(ctx context.Context, id string, e AttachmentSpec) error {
	return m.step(ctx, "attach")
}

// eventually polls with a deadline.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestStatesFollowTheMachines(t *testing.T) {
	m := &machines{gate: make(chan error)}
	f := newFixture(t, Config{Instances: m})
	state := func() types.InstanceStateName {
		out := must(f.ec2.DescribeInstances(f.ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{f.instance}}))(f)
		return out.Reservations[0].Instances[0].State.Name
	}
	if s := state(); s != "pending" {
		t.Errorf("launched: %s", s)
	}
	id := f.eni("interface")
	_, err := f.attach(id, f.instance, 1)
	wantCode(t, err, "IncorrectState")
	m.gate <- nil
	eventually(t, "running", func() bool { return state() == "running" })

	must(f.attach(id, f.instance, 1))(f)
	if d := f.describe(id); d.Attachment.Status != "attaching" {
		t.Errorf("%s", d.Attachment.Status)
	}
	m.gate <- errors.New("no slot")
	eventually(t, "a failed attachment is taken back", func() bool { return f.describe(id).Status == "available" })
	att := must(f.attach(id, f.instance, 1))(f)
	m.gate <- nil
	eventually(t, "attached", func() bool { return f.describe(id).Status == "in-use" })
	must(f.ec2.DetachNetworkInterface(f.ctx, &ec2.DetachNetworkInterfaceInput{AttachmentId: &att}))(f)
	// Termination waits for the step before it.
	must(f.ec2.TerminateInstances(f.ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{f.instance}}))(f)
	m.gate <- nil
	eventually(t, "detached", func() bool { return f.describe(id).Status == "available" })
	if s := state(); s != "shutting-down" {
		t.Errorf("terminating: %s", s)
	}
	m.gate <- nil
	eventually(t, "terminated", func() bool { return state() == "terminated" })
	m.mu.Lock()
	defer m.mu.Unlock()
	if got := len(m.steps); got != 5 || m.steps[3] != "detach" || m.steps[4] != "terminate" {
		t.Errorf("steps %v", m.steps)
	}
}

// witness is a driver that asks at once whether the data plane knows the ENI.
type witness struct {
	machines
	knows func(eniID string) bool
	seen  chan bool
}

func (w *witness) Launch(_ context.Context, i InstanceSpec) error {
	w.seen <- w.knows(i.Primary.ENIID)
	return nil
}

func TestTheDataPlaneKnowsAnInterfaceBeforeTheMachineDoes(t *testing.T) {
	var told atomic.Pointer[vpc.Topology]
	w := &witness{seen: make(chan bool, 1), knows: func(id string) bool {
		top := told.Load()
		return top != nil && slices.ContainsFunc(top.ENIs, func(e vpc.ENI) bool { return e.ID == id })
	}}
	newFixture(t, Config{Instances: w, OnChange: func(top *vpc.Topology) {
		time.Sleep(2 * time.Millisecond) // time for a step that doesn't wait to be caught
		told.Store(top)
	}})
	if !<-w.seen {
		t.Error("the machine was launched first")
	}
}

func TestMetadataShowsAnInterfaceLate(t *testing.T) {
	clk := newClock()
	f := newFixture(t, Config{Now: clk.Now, MetadataDelay: 3 * time.Second})
	srv := httptest.NewServer(imds.Handler(f.region.Metadata(f.instance), clk.Now))
	t.Cleanup(srv.Close)
	client := aws.NewIMDS(aws.Options{IMDSEndpoint: srv.URL})
	trunk := f.trunk()
	list := must(client.Interfaces(f.ctx))(f)
	if len(list) != 1 || list[0].DeviceNumber != 0 {
		t.Fatalf("before the delay: %+v", list)
	}
	clk.advance(4 * time.Second)
	list = must(client.Interfaces(f.ctx))(f)
	if len(list) != 2 || list[1].ENIID != trunk || list[1].DeviceNumber != 2 || list[1].SubnetCIDR.String() != "192.168.0.0/19" ||
		list[1].SecurityGroupIDs[0] != f.group || list[1].VPCCIDRs[0].String() != "192.168.0.0/16" {
		t.Fatalf("after it: %+v", list)
	}
	id := must(client.Identity(f.ctx))(f)
	if id.InstanceID != f.instance || id.InstanceType != "m5.large" || id.Region != "us-west-2" || id.AccountID != "111122223333" ||
		id.PrivateIP != list[0].Addresses[0] || id.PrimaryMAC.String() != list[0].MAC.String() {
		t.Errorf("identity %+v", id)
	}
}

func TestAnOversizedRequestIsRefused(t *testing.T) {
	f := newFixture(t, Config{})
	resp, err := http.Post(f.url, "application/x-www-form-urlencoded", bytes.NewReader(make([]byte, maxBody+1)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("status %s", resp.Status)
	}
}
