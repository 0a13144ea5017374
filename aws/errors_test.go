package aws

import (
	"context"
	"fmt"
	"testing"

	"github.com/aws/smithy-go"
)

func apiError(code, msg string) error {
	return fmt.Errorf("create an interface: %w", &smithy.GenericAPIError{Code: code, Message: msg})
}

func TestErrorsAreClassifiedByCode(t *testing.T) {
	for _, tc := range []struct {
		err                         error
		code                        string
		notFound, throttled, denied bool
	}{
		{nil, "", false, false, false},
		{context.DeadlineExceeded, "", false, false, false},
		{apiError("InvalidNetworkInterfaceID.NotFound", ""), "InvalidNetworkInterfaceID.NotFound", true, false, false},
		{apiError("RequestLimitExceeded", ""), "RequestLimitExceeded", false, true, false},
		{apiError("UnauthorizedOperation", ""), "UnauthorizedOperation", false, false, true},
		{apiError("InternalError", "InvalidNetworkInterfaceID.NotFound, not authorized to perform: ec2:X"), "InternalError", false, false, false},
	} {
		if Code(tc.err) != tc.code || IsNotFound(tc.err) != tc.notFound || IsThrottled(tc.err) != tc.throttled || IsDenied(tc.err) != tc.denied {
			t.Errorf("%v: code %q, not found %v, throttled %v, denied %v", tc.err, Code(tc.err), IsNotFound(tc.err), IsThrottled(tc.err), IsDenied(tc.err))
		}
	}
}

func TestDeniedReadsWhatTheMessageNames(t *testing.T) {
	const user = "User: arn:aws:sts::111122223333:assumed-role/r/i-1 is not authorized to perform: "
	for _, tc := range []struct {
		err              error
		action, resource string
		ok               bool
	}{
		{apiError("UnauthorizedOperation", "You are not authorized to perform this operation. "+user+
			"ec2:CreateNetworkInterface on resource: arn:aws:ec2:us-west-2:111122223333:network-interface/* because no identity-based policy allows it"),
			"ec2:CreateNetworkInterface", "arn:aws:ec2:us-west-2:111122223333:network-interface/*", true},
		{apiError("UnauthorizedOperation", user+"ec2:DescribeSubnets because no identity-based policy allows it"), "ec2:DescribeSubnets", "", true},
		{apiError("UnauthorizedOperation", "You are not authorized to perform this operation."), "", "", false},
		{apiError("InternalError", user+"ec2:DescribeSubnets"), "", "", false},
		{nil, "", "", false},
	} {
		if a, r, ok := Denied(tc.err); a != tc.action || r != tc.resource || ok != tc.ok {
			t.Errorf("%v: %q on %q (%v)", tc.err, a, r, ok)
		}
	}
}

func FuzzDenied(f *testing.F) {
	f.Add("x is not authorized to perform: ec2:A on resource: arn:aws:ec2::1:vpc/x.")
	f.Fuzz(func(t *testing.T, msg string) {
		a, r, ok := Denied(apiError("UnauthorizedOperation", msg))
		if ok == (a == "") || (r != "" && !ok) {
			t.Fatalf("%q: %q on %q (%v)", msg, a, r, ok)
		}
	})
}
