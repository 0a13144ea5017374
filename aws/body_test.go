package aws_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/middleware"

	"github.com/branchline-cni/branchline/aws"
)

// recorder keeps the bodies of requests and fails the first ones.
type recorder struct {
	fail     int
	bodies   []string
	writerTo bool
}

func (r *recorder) Do(req *http.Request) (*http.Response, error) {
	_, writes := req.Body.(io.WriterTo)
	r.writerTo = r.writerTo || writes
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	r.bodies = append(r.bodies, string(b))
	if len(r.bodies) <= r.fail {
		return nil, errors.New("connection reset by peer")
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("<DescribeVpcsResponse/>"))}, nil
}

func TestRequestBodiesAreReadWholeInEachAttempt(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options []func(*middleware.Stack) error
		writes  bool
	}{
		{"as the SDK has it, which closes connections under their answers", nil, true},
		{"as our clients have it", []func(*middleware.Stack) error{aws.ReadableBody}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &recorder{fail: 2}
			c := ec2.NewFromConfig(awssdk.Config{
				Region: "us-west-2", HTTPClient: r, APIOptions: tt.options, Credentials: credentials.NewStaticCredentialsProvider("k", "s", ""),
				Retryer: func() awssdk.Retryer {
					return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = 3, 1 })
				},
			})
			if _, err := c.DescribeVpcs(t.Context(), &ec2.DescribeVpcsInput{VpcIds: []string{"vpc-1"}}); err != nil {
				t.Fatal(err)
			}
			for _, b := range r.bodies {
				if b != "Action=DescribeVpcs&Version=2016-11-15&VpcId.1=vpc-1" {
					t.Errorf("sent %q", b)
				}
			}
			if len(r.bodies) != 3 || r.writerTo != tt.writes {
				t.Errorf("%d attempts, body is an io.WriterTo: %t", len(r.bodies), r.writerTo)
			}
		})
	}
}
