package aws_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/branchline-cni/branchline/aws"
	lab "github.com/branchline-cni/branchline/lab/ec2"
)

// region is a lab region; the client gets the operator's keys by the environment, as by any default chain.
func region(t *testing.T, cfg lab.Config) (*lab.Region, string) {
	t.Helper()
	r := lab.New(cfg)
	srv := httptest.NewServer(r.Handler())
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close(); r.Close() })
	key, secret := r.AdminCredentials()
	for k, v := range map[string]string{
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "", "AWS_SESSION_TOKEN": "",
		"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret,
	} {
		t.Setenv(k, v)
	}
	return r, srv.URL
}

func client(t *testing.T, o aws.Options) *ec2.Client {
	t.Helper()
	if o.Region == "" {
		o.Region = "us-west-2"
	}
	c, err := aws.NewEC2(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEachAttemptHasItsOwnTimeLimit(t *testing.T) {
	r, url := region(t, lab.Config{})
	reg := prometheus.NewRegistry()
	c := client(t, aws.Options{Endpoint: url, Timeout: time.Second, Metrics: reg})
	r.Faults().Add(lab.Fault{API: "DescribeVpcs", Delay: time.Hour})
	if _, err := c.DescribeVpcs(t.Context(), &ec2.DescribeVpcsInput{}); err != nil {
		t.Fatalf("the second attempt should have succeeded: %v", err)
	}
	if n := r.Faults().Calls("DescribeVpcs"); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
	want := `
# HELP awscni_aws_api_error_count Failed AWS API requests by EC2 error code.
# TYPE awscni_aws_api_error_count counter
awscni_aws_api_error_count{api="DescribeVpcs",error="none"} 1
# HELP awscni_ec2api_req_count Requests sent to the EC2 API, retries included.
# TYPE awscni_ec2api_req_count counter
awscni_ec2api_req_count{fn="DescribeVpcs"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "awscni_aws_api_error_count", "awscni_ec2api_req_count"); err != nil {
		t.Error(err)
	}
}

func TestRetriesAreBounded(t *testing.T) {
	r, url := region(t, lab.Config{})
	reg := prometheus.NewRegistry()
	c := client(t, aws.Options{Endpoint: url, MaxAttempts: 2, Metrics: reg, MetricsNamespace: "other"})
	r.Faults().Add(lab.Fault{API: "DescribeVpcs", Times: -1, Code: "InternalError"})
	_, err := c.DescribeVpcs(t.Context(), &ec2.DescribeVpcsInput{})
	if aws.Code(err) != "InternalError" || r.Faults().Calls("DescribeVpcs") != 2 {
		t.Errorf("%d attempts, %v", r.Faults().Calls("DescribeVpcs"), err)
	}
	want := `
# HELP other_aws_api_error_count Failed AWS API requests by EC2 error code.
# TYPE other_aws_api_error_count counter
other_aws_api_error_count{api="DescribeVpcs",error="InternalError"} 2
`
	if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "other_aws_api_error_count"); err != nil {
		t.Error(err)
	}
}

func TestADroppedAnswerIsAskedForAgainWithoutASecondEffect(t *testing.T) {
	r, url := region(t, lab.Config{})
	c := client(t, aws.Options{Endpoint: url})
	v, err := c.CreateVpc(t.Context(), &ec2.CreateVpcInput{CidrBlock: ptr("10.0.0.0/16")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.CreateSubnet(t.Context(), &ec2.CreateSubnetInput{VpcId: v.Vpc.VpcId, CidrBlock: ptr("10.0.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	r.Faults().Add(lab.Fault{API: "CreateNetworkInterface", Drop: true})
	if _, err := c.CreateNetworkInterface(t.Context(), &ec2.CreateNetworkInterfaceInput{SubnetId: s.Subnet.SubnetId}); err != nil {
		t.Fatal(err)
	}
	all, err := c.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{})
	if err != nil || len(all.NetworkInterfaces) != 1 {
		t.Errorf("%d interfaces, want 1 (%v)", len(all.NetworkInterfaces), err)
	}
}

func TestARegionIsNeeded(t *testing.T) {
	_, url := region(t, lab.Config{})
	if _, err := aws.NewEC2(t.Context(), aws.Options{Endpoint: url}); !errors.Is(err, aws.ErrNoRegion) {
		t.Errorf("%v", err)
	}
}

func TestTwoClientsShareTheirSeries(t *testing.T) {
	_, url := region(t, lab.Config{})
	reg := prometheus.NewRegistry()
	for range 2 {
		c := client(t, aws.Options{Endpoint: url, Metrics: reg})
		if _, err := c.DescribeVpcs(t.Context(), &ec2.DescribeVpcsInput{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := testutil.CollectAndCount(reg, "awscni_aws_api_latency_ms"); n != 1 {
		t.Errorf("%d series", n)
	}
}

func TestIMDSWithoutAnAnswerIsAnError(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler()) // what IMDSv1 only, or a proxy, would look like
	t.Cleanup(srv.Close)
	_, err := aws.NewIMDS(aws.Options{IMDSEndpoint: srv.URL, Timeout: time.Second}).Identity(t.Context())
	if err == nil || !strings.Contains(err.Error(), "instance identity document") {
		t.Errorf("%v", err)
	}
}

func ptr[T any](v T) *T { return &v }
