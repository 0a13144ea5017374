package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/middleware"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// DefaultTimeout bounds one attempt of one call.
	DefaultTimeout = 10 * time.Second
	// DefaultMaxAttempts bounds how often a call is tried. Throttling is the usual reason for a second attempt; work
	// queues of the callers take over from there.
	DefaultMaxAttempts = 4
	// maxBackoff bounds the pause between two attempts.
	maxBackoff = 5 * time.Second
)

// Options for the clients. The zero value works on an EC2 instance.
type Options struct {
	// Region, for example us-west-2. Empty: from the environment or the shared configuration; NewEC2 fails if none
	// names one (callers that run on an instance read it from IMDS first).
	Region string
	// Endpoint is the URL of the EC2 API. Empty: AWS's own for the region.
	Endpoint string
	// IMDSEndpoint is the URL of the instance metadata service. Empty: http://169.254.169.254.
	IMDSEndpoint string
	// IPv6 has IMDS read what interfaces have of IPv6, too.
	IPv6 bool
	// Transport carries the requests. nil: the network.
	Transport http.RoundTripper
	// Timeout bounds each attempt. Zero: DefaultTimeout.
	Timeout time.Duration
	// MaxAttempts bounds how often one call is tried. Zero: DefaultMaxAttempts.
	MaxAttempts int
	// Metrics receives the series of this client. nil: none are kept.
	Metrics prometheus.Registerer
	// MetricsNamespace prefixes the series. Empty: "awscni", what dashboards of the node agent look for.
	MetricsNamespace string
	// UserAgent names the program in AWS's audit trail, as "name/version". Empty: the SDK's own.
	UserAgent string
}

func (o Options) timeout() time.Duration {
	if o.Timeout > 0 {
		return o.Timeout
	}
	return DefaultTimeout
}

func (o Options) maxAttempts() int {
	if o.MaxAttempts > 0 {
		return o.MaxAttempts
	}
	return DefaultMaxAttempts
}

func (o Options) httpClient() config.HTTPClient {
	if o.Transport != nil {
		return &http.Client{Transport: o.Transport, Timeout: o.timeout()}
	}
	return awshttp.NewBuildableClient().WithTimeout(o.timeout())
}

// ErrNoRegion is returned when neither the options nor the environment name a region.
var ErrNoRegion = errors.New("no AWS region: set AWS_REGION, or let the instance metadata service be reached")

// NewEC2 makes a client of the EC2 API that takes its credentials from the SDK's default chain (environment, shared
// files, web identity, container, instance role).
func NewEC2(ctx context.Context, o Options) (*ec2.Client, error) {
	load := []func(*config.LoadOptions) error{
		// A limit in the HTTP client holds for one attempt, and the retryer takes its error for a time-out of the
		// connection; a deadline in the attempt's context would look like the caller giving up.
		config.WithHTTPClient(o.httpClient()),
		config.WithRetryer(func() awssdk.Retryer {
			return retry.NewStandard(func(s *retry.StandardOptions) {
				s.MaxAttempts = o.maxAttempts()
				s.MaxBackoff = maxBackoff
			})
		}),
		config.WithAPIOptions([]func(*middleware.Stack) error{ReadableBody}),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.IMDSEndpoint != "" {
		load = append(load, config.WithEC2IMDSEndpoint(o.IMDSEndpoint))
	}
	if o.UserAgent != "" {
		load = append(load, config.WithAppID(o.UserAgent))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("load the AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		return nil, ErrNoRegion
	}
	var observe []func(*ec2.Options)
	if o.Metrics != nil {
		m, err := newMetrics(o.Metrics, o.MetricsNamespace)
		if err != nil {
			return nil, err
		}
		observe = append(observe, func(eo *ec2.Options) { eo.APIOptions = append(eo.APIOptions, m.install) })
	}
	if o.Endpoint != "" {
		observe = append(observe, func(eo *ec2.Options) { eo.BaseEndpoint = awssdk.String(o.Endpoint) })
	}
	return ec2.NewFromConfig(cfg, observe...), nil
}
