package ipamd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	labimds "github.com/branchline-cni/branchline/lab/imds"
	"github.com/branchline-cni/branchline/lab/vpc"
	"github.com/branchline-cni/branchline/test/truth"
)

const (
	atEC2  = "http://ec2.lab"
	atIMDS = "http://imds.lab"
)

// labCloud is the lab's EC2 and IMDS, behind the clients that the agent has.
type labCloud struct {
	s        *stage
	region   *labec2.Region
	metadata labimds.Faults
	admin    *ec2.Client
	id       string
	subnet   string
	group    string
	latency  time.Duration
	answers  answers

	mu     sync.Mutex
	undo   func() // of late descriptions
	cached map[string]truth.ENI
	dirty  atomic.Bool
}

func newLab(s *stage) provider {
	l := &labCloud{s: s, latency: 50 * time.Millisecond}
	l.dirty.Store(true)
	l.region = labec2.New(labec2.Config{
		Limits: labec2.NoRequestLimits(), History: 5 * time.Minute, Seed: "truth",
		OnChange: func(*vpc.Topology) { l.dirty.Store(true); go s.linksChanged() },
	})
	key, secret := l.region.AdminCredentials()
	cfg := awssdk.Config{
		Region: "us-west-2", BaseEndpoint: awssdk.String(atEC2), HTTPClient: &http.Client{Transport: direct{l.region.Handler()}},
		Credentials: credentials.NewStaticCredentialsProvider(key, secret, ""),
	}
	l.admin = ec2.NewFromConfig(cfg)
	if err := l.build(iam.NewFromConfig(cfg)); err != nil {
		s.t.Fatalf("%v", err)
	}
	return l
}

// build makes the VPC and the instance, with the role that nodes have.
func (l *labCloud) build(roles *iam.Client) error {
	ctx := context.Background()
	v, err := l.admin.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: awssdk.String("192.168.0.0/16")})
	if err != nil {
		return err
	}
	sub, err := l.admin.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: v.Vpc.VpcId, CidrBlock: awssdk.String("192.168.0.0/24"), AvailabilityZone: awssdk.String(zone)})
	if err != nil {
		return err
	}
	g, err := l.admin.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{VpcId: v.Vpc.VpcId, GroupName: awssdk.String("node"), Description: awssdk.String("node")})
	if err != nil {
		return err
	}
	l.subnet, l.group = *sub.Subnet.SubnetId, *g.GroupId
	name, trust := awssdk.String("node"), awssdk.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`)
	_, err1 := roles.CreateRole(ctx, &iam.CreateRoleInput{RoleName: name, AssumeRolePolicyDocument: trust})
	_, err2 := roles.AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: name, PolicyArn: awssdk.String("arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy")})
	_, err3 := roles.CreateInstanceProfile(ctx, &iam.CreateInstanceProfileInput{InstanceProfileName: name})
	_, err4 := roles.AddRoleToInstanceProfile(ctx, &iam.AddRoleToInstanceProfileInput{InstanceProfileName: name, RoleName: name})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	one := awssdk.Int32(1)
	out, err := l.admin.RunInstances(ctx, &ec2.RunInstancesInput{
		ImageId: awssdk.String("ami-1"), InstanceType: "m5.large", MinCount: one, MaxCount: one, SubnetId: &l.subnet,
		SecurityGroupIds: []string{l.group}, IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: name},
	})
	if err == nil {
		l.id = *out.Instances[0].InstanceId
	}
	return err
}

func (l *labCloud) identity() aws.Identity {
	return aws.Identity{InstanceID: l.id, InstanceType: "m5.large", Region: "us-west-2", AvailabilityZone: zone}
}

// enis asks as the operator, whom no fault hits.
func (l *labCloud) enis() map[string]truth.ENI {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dirty.Swap(false) {
		return l.cached
	}
	out, err := l.admin.DescribeNetworkInterfaces(context.Background(), &ec2.DescribeNetworkInterfacesInput{})
	if err != nil {
		panic(err)
	}
	l.cached = map[string]truth.ENI{}
	for _, n := range out.NetworkInterfaces {
		e := truth.ENI{ID: *n.NetworkInterfaceId, MAC: *n.MacAddress, Description: awssdk.ToString(n.Description), Device: -1}
		for _, a := range n.PrivateIpAddresses {
			e.Addresses = append(e.Addresses, netip.MustParseAddr(*a.PrivateIpAddress))
		}
		for _, p := range n.Ipv4Prefixes {
			e.Prefixes = append(e.Prefixes, netip.MustParsePrefix(*p.Ipv4Prefix))
		}
		if n.Attachment != nil {
			e.Device = int(*n.Attachment.DeviceIndex)
		}
		l.cached[e.ID] = e
	}
	return l.cached
}

func (l *labCloud) lateMetadata(eni string, by time.Duration) {
	l.region.LateMetadata(l.id, eni, by)
}

func (l *labCloud) lateDescribes(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undo != nil {
		l.undo()
		l.undo = nil
	}
	if by > 0 {
		l.undo = l.region.Faults().Add(labec2.Fault{API: "DescribeNetworkInterfaces", Role: "node", Times: -1, Late: by})
	}
}

func (l *labCloud) fail(f flaw) {
	if f.api == "IMDS" {
		l.metadata.Add(labimds.Fault{Path: "/latest/meta-data/network", Times: f.times, Status: http.StatusInternalServerError})
		return
	}
	fault := labec2.Fault{API: f.api, Role: "node", Times: f.times}
	switch f.kind {
	case refused:
		fault.Code = f.code
	case lost:
		fault.Drop = true
	case repeated:
		fault.Repeat = true
	}
	l.region.Faults().Add(fault)
}

func (l *labCloud) calm() {
	l.lateDescribes(0)
	l.region.Faults().Clear()
	l.region.MetadataInTime(l.id)
	l.metadata.Clear()
}

func (l *labCloud) bring() error {
	ctx := context.Background()
	e, err := l.admin.CreateNetworkInterface(ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: &l.subnet, Groups: []string{l.group}, SecondaryPrivateIpAddressCount: awssdk.Int32(2), Description: awssdk.String("somebody's")})
	if err != nil {
		return err
	}
	id := e.NetworkInterface.NetworkInterfaceId
	for device := range int32(truth.MaxENIs) {
		if _, err = l.admin.AttachNetworkInterface(ctx, &ec2.AttachNetworkInterfaceInput{NetworkInterfaceId: id, InstanceId: &l.id, DeviceIndex: awssdk.Int32(device + 1)}); err == nil {
			return nil
		}
	}
	_, derr := l.admin.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: id})
	return errors.Join(err, derr)
}

func (l *labCloud) take(eni string) error {
	ctx := context.Background()
	out, err := l.admin.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eni}})
	if err != nil {
		return err
	}
	if _, err = l.admin.DetachNetworkInterface(ctx, &ec2.DetachNetworkInterfaceInput{AttachmentId: out.NetworkInterfaces[0].Attachment.AttachmentId}); err != nil {
		return err
	}
	_, err = l.admin.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &eni})
	return err
}

func (l *labCloud) assign(eni string) error {
	_, err := l.admin.AssignPrivateIpAddresses(context.Background(), &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &eni, SecondaryPrivateIpAddressCount: awssdk.Int32(1)})
	return err
}

func (l *labCloud) unassign(eni string, a netip.Addr) error {
	_, err := l.admin.UnassignPrivateIpAddresses(context.Background(), &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &eni, PrivateIpAddresses: []string{a.String()}})
	return err
}

// reach gives the agent the clients that it has on an instance, without a network in between.
func (l *labCloud) reach(h *hands) (enis.Metadata, EC2) {
	r := &labReach{l: l, h: h, ec2: direct{l.region.Handler()}, imds: direct{l.metadata.Handler(labimds.Handler(l.region.Metadata(l.id), time.Now))}}
	o := aws.Options{Region: "us-west-2", Endpoint: atEC2, IMDSEndpoint: atIMDS, Transport: r}
	client, err := aws.NewEC2(context.Background(), o)
	if err != nil {
		l.s.t.Fatalf("%v", err)
	}
	return aws.NewIMDS(o), client
}

// answers are how EC2 and IMDS answer as a whole, whatever is asked.
type answers struct{ ec2, imds atomic.Int32 }

type mood int32

const (
	usual   mood = iota
	silent       // no answer ever
	garbled      // a proxy's page
	away         // nobody listens
)

// labReach is one agent's way to both.
type labReach struct {
	l         *labCloud
	h         *hands
	ec2, imds http.RoundTripper
}

func (r *labReach) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := sleep(req.Context(), r.l.latency); err != nil {
		return nil, err
	}
	if r.h.dead() {
		return nil, errKilled
	}
	to, how := r.ec2, &r.l.answers.ec2
	if strings.HasPrefix(req.URL.String(), atIMDS) {
		to, how = r.imds, &r.l.answers.imds
	}
	switch mood(how.Load()) {
	case silent:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case garbled:
		return &http.Response{StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"text/html"}}, Body: io.NopCloser(strings.NewReader("<html><p>Please log in")), Request: req}, nil
	case away:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	resp, err := to.RoundTrip(req)
	if err := sleep(req.Context(), r.l.latency); err != nil {
		return nil, err
	}
	if r.h.dead() {
		return nil, errKilled
	}
	return resp, err
}

// direct calls a handler in the place of a server.
type direct struct{ h http.Handler }

func (d direct) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	in := req.Clone(req.Context())
	if in.Host == "" {
		in.Host = in.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.RequestURI = in.URL.RequestURI()
	defer in.Body.Close()
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			resp, err = nil, io.ErrUnexpectedEOF
		default:
			panic(p)
		}
	}()
	w := httptest.NewRecorder()
	d.h.ServeHTTP(w, in)
	return w.Result(), nil
}

// withoutAWS keeps what the machine has of AWS's settings out of a test.
func withoutAWS(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "")
	}
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(name, "/nowhere")
	}
}

// TestP5P50TheAgentNeverLiesAboutAddressesOfTheLab plays the same on the lab's EC2 and IMDS, through the clients that ship:
// with their retries, a role's permissions, EC2's own rules for attachments, and the lab's lateness.
func TestP5P50TheAgentNeverLiesAboutAddressesOfTheLab(t *testing.T) {
	withoutAWS(t)
	c := &scene{t: t, cloud: newLab, most: 12}
	rapid.Check(t, func(rt *rapid.T) {
		if rapid.IntRange(0, 5).Draw(rt, "of six cases") == 0 { // one is played: each takes six times what one on the plain maps does
			c.play(rt)
		}
	})
}
