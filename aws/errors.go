package aws

import (
	"errors"
	"net/http"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Codes of the EC2 API that callers branch on (EC2 API reference, "Error codes").
const (
	CodeInterfaceNotFound       = "InvalidNetworkInterfaceID.NotFound"
	CodeAttachmentNotFound      = "InvalidAttachmentID.NotFound"
	CodeAssociationNotFound     = "InvalidAssociationID.NotFound"
	CodeInstanceNotFound        = "InvalidInstanceID.NotFound"
	CodeInterfaceInUse          = "InvalidNetworkInterface.InUse"
	CodeSubnetFull              = "InsufficientFreeAddressesInSubnet"
	CodeAttachmentLimitExceeded = "AttachmentLimitExceeded"
	CodeAddressLimitExceeded    = "PrivateIpAddressLimitExceeded"
	CodeInvalidParameterValue   = "InvalidParameterValue"
	CodeIdempotentMismatch      = "IdempotentParameterMismatch"
	// CodeDuplicateVLAN is not in the reference; it is what AssociateTrunkInterface is known to answer.
	CodeDuplicateVLAN = "InvalidVlanId.Duplicate"
)

// Code returns the API's error code in err's chain, or "" when there was no answer from the API.
func Code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// IsNotFound says whether err means that what was named doesn't exist: an EC2 code ending in ".NotFound", or IMDS
// answering 404.
func IsNotFound(err error) bool {
	if strings.HasSuffix(Code(err), ".NotFound") {
		return true
	}
	var resp *smithyhttp.ResponseError
	return errors.As(err, &resp) && Code(err) == "" && resp.HTTPStatusCode() == http.StatusNotFound
}

// IsThrottled says whether the API asked to be called less often.
func IsThrottled(err error) bool {
	_, ok := retry.DefaultThrottleErrorCodes[Code(err)]
	return ok
}

// IsRefused says whether the API answered that it will not do what was asked (HTTP 4xx). Where it failed (5xx), or did not
// answer, the call may have had its effect.
func IsRefused(err error) bool {
	var resp *smithyhttp.ResponseError
	return errors.As(err, &resp) && Code(err) != "" && resp.HTTPStatusCode() >= 400 && resp.HTTPStatusCode() < 500
}

// IsDenied says whether the caller's role lacks a permission, or the account isn't enabled for the call.
func IsDenied(err error) bool {
	switch Code(err) {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "OptInRequired":
		return true
	}
	return false
}

var (
	deniedAction   = regexp.MustCompile(`not authorized to perform:? ([a-z0-9-]+:[A-Za-z0-9]+)`)
	deniedResource = regexp.MustCompile(`on resource:? (arn:[^\s"]+|\*)`)
)

// Denied says which action on which resource was refused, for people to read: AWS gives both only in the text of the
// message, which may change. ok is false when err isn't a refusal or names no action; resource is "" where AWS names
// none (actions that know no resources). Decide with IsDenied.
func Denied(err error) (action, resource string, ok bool) {
	if !IsDenied(err) {
		return "", "", false
	}
	var api smithy.APIError
	errors.As(err, &api)
	msg := api.ErrorMessage()
	a := deniedAction.FindStringSubmatch(msg)
	if a == nil {
		return "", "", false
	}
	if r := deniedResource.FindStringSubmatch(msg); r != nil {
		resource = strings.TrimRight(r[1], ".,")
	}
	return a[1], resource, true
}
