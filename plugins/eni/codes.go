package eni

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/unary"
)

// Error codes of our own; below 100 are the CNI specification's ("Error", well-known codes).
const (
	// CodeRefused: the agent refuses this pod, and trying again without a change is useless. The message says what to do.
	CodeRefused uint = 100
	// CodeWiring: a kernel change failed; what was made is undone.
	CodeWiring uint = 101
	// CodeConflict: a link with the name that we need is somebody else's, or the sandbox is wired already.
	CodeConflict uint = 102
	// CodeBadReply: the agent's answer can't be wired. Agent and executable may be too far apart in version.
	CodeBadReply uint = 103
	// CodePanic: a defect of the executable; the log file has the stack.
	CodePanic uint = 104
	// CodeUnsupported: this version of the executable, or of the agent, does not know the verb.
	CodeUnsupported uint = 105
	// CodePeer: the process that listens on the agent's socket is not root.
	CodePeer uint = 106
	// CodePolicy: the network policy agent did not put the pod under its policies; what was made is undone.
	CodePolicy uint = 107
	// CodeDifferent: CHECK has found something that is not as it was wired; the first difference is named.
	CodeDifferent uint = 108
)

// The codes of STATUS, of the specification from 1.1.0 on: the library does not name them.
const (
	// CodeNotAvailable: ADD can't succeed now.
	CodeNotAvailable uint = 50
	// CodeLimited: nor can what is wired already be expected to work.
	CodeLimited uint = 51
)

func invalidConfig(field, format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("network configuration: %s: %s", field, fmt.Sprintf(format, args...)), "")
}

func invalidEnv(variable, format string, args ...any) error {
	return types.NewError(types.ErrInvalidEnvironmentVariables, fmt.Sprintf("%s: %s", variable, fmt.Sprintf(format, args...)), "")
}

// badReply is what is wrong with an agent's answer.
type badReply struct{ err error }

func (e badReply) Error() string { return "the node agent's answer can't be wired: " + e.err.Error() }
func (e badReply) Unwrap() error { return e.err }

// toCNI is the one place where errors become the codes that the runtime sees.
func toCNI(attempt string, err error) *types.Error {
	if err == nil {
		return nil
	}
	var done *types.Error
	if errors.As(err, &done) {
		return done
	}
	return types.NewError(codeOf(err), attempt+": "+messageOf(err), "")
}

func codeOf(err error) uint {
	var reply badReply
	var step *datapath.StepError
	var policy *policyError
	var different *datapath.Difference
	switch {
	case errors.As(err, &different):
		return CodeDifferent
	case errors.Is(err, rpc.ErrPeerRefused):
		return CodePeer
	case errors.As(err, &reply), errors.Is(err, datapath.ErrInvalidRequest):
		return CodeBadReply
	case errors.As(err, &policy):
		return CodePolicy
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, os.ErrDeadlineExceeded):
		return types.ErrTryAgainLater
	case errors.Is(err, datapath.ErrConflict):
		return CodeConflict
	case errors.As(err, &step):
		if _, ok := step.Step.(datapath.AddVeth); ok && errors.Is(err, os.ErrExist) {
			return CodeConflict
		}
		return CodeWiring
	}
	var call *unary.Error
	if !errors.As(err, &call) {
		return CodeWiring
	}
	switch call.Code {
	case unary.Unavailable, unary.DeadlineExceeded, unary.ResourceExhausted, unary.Canceled, unary.Aborted:
		return types.ErrTryAgainLater
	case unary.NotFound:
		return types.ErrUnknownContainer
	case unary.InvalidArgument:
		return types.ErrInvalidEnvironmentVariables
	case unary.FailedPrecondition, unary.PermissionDenied, unary.Unauthenticated:
		return CodeRefused
	case unary.Unimplemented:
		return CodeUnsupported
	}
	return types.ErrInternal
}

// messageOf is the agent's own word where there is one: what was called is in the CNI error already. An error that wraps
// the call's says more than that, whose agent it was for one, and stays whole.
func messageOf(err error) string {
	if call, ok := err.(*unary.Error); ok && call.Answered {
		return fmt.Sprintf("%s (%s)", call.Message, call.Code)
	}
	return err.Error()
}

// definite says that the agent has answered, and so holds nothing for us: any other failed call may have reached it.
func definite(err error) bool {
	var call *unary.Error
	if errors.As(err, &call) && call.Answered {
		switch call.Code {
		case unary.FailedPrecondition, unary.NotFound, unary.InvalidArgument, unary.ResourceExhausted, unary.Unimplemented, unary.PermissionDenied:
			return true
		}
	}
	return errors.Is(err, rpc.ErrPeerRefused)
}
