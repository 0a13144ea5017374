package aws

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts attempts, not calls: what EC2 counts against the account's request limits. Names and labels are those
// that dashboards of the AWS VPC CNI query.
type metrics struct {
	requests *prometheus.CounterVec // fn
	failures *prometheus.CounterVec // fn
	codes    *prometheus.CounterVec // api, error
	latency  *prometheus.SummaryVec // api, error, status; milliseconds
}

func newMetrics(reg prometheus.Registerer, namespace string) (*metrics, error) {
	if namespace == "" {
		namespace = "awscni"
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "ec2api_req_count", Help: "Requests sent to the EC2 API, retries included.",
		}, []string{"fn"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "ec2api_error_count", Help: "Requests to the EC2 API that failed, retries included.",
		}, []string{"fn"}),
		codes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Name: "aws_api_error_count", Help: "Failed AWS API requests by EC2 error code.",
		}, []string{"api", "error"}),
		latency: prometheus.NewSummaryVec(prometheus.SummaryOpts{
			Namespace: namespace, Name: "aws_api_latency_ms", Help: "Duration of AWS API requests in milliseconds.",
		}, []string{"api", "error", "status"}),
	}
	for _, err := range []error{
		register(reg, &m.requests), register(reg, &m.failures), register(reg, &m.codes), register(reg, &m.latency),
	} {
		if err != nil {
			return nil, fmt.Errorf("register the metrics of the EC2 client: %w", err)
		}
	}
	return m, nil
}

// register lets several clients of one process share their series.
func register[C prometheus.Collector](reg prometheus.Registerer, c *C) error {
	err := reg.Register(*c)
	var already prometheus.AlreadyRegisteredError
	if errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			*c = existing
			return nil
		}
	}
	return err
}

// install puts the observer behind the retryer, so that it sees each attempt.
func (m *metrics) install(s *middleware.Stack) error {
	return s.Finalize.Insert(middleware.FinalizeMiddlewareFunc("BranchlineMetrics", m.observe), "Retry", middleware.After)
}

func (m *metrics) observe(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (
	middleware.FinalizeOutput, middleware.Metadata, error,
) {
	start := time.Now()
	out, md, err := next.HandleFinalize(ctx, in)
	elapsed := time.Since(start)

	api := awsmiddleware.GetOperationName(ctx)
	m.requests.WithLabelValues(api).Inc()
	status := ""
	if resp, ok := awsmiddleware.GetRawResponse(md).(*smithyhttp.Response); ok && resp != nil {
		status = strconv.Itoa(resp.StatusCode)
	}
	if err != nil {
		code := Code(err)
		if code == "" {
			code = "none" // no answer: connection, time-out, or the caller gave up
		}
		m.failures.WithLabelValues(api).Inc()
		m.codes.WithLabelValues(api, code).Inc()
	}
	m.latency.WithLabelValues(api, strconv.FormatBool(err != nil), status).Observe(float64(elapsed) / float64(time.Millisecond))
	return out, md, err
}
