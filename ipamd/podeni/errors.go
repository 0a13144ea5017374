package podeni

import "errors"

// Reasons why a pod is not wired; callers branch on them.
var (
	// ErrUnknown: the API server knows no pod of that name and UID.
	ErrUnknown = errors.New("unknown pod")
	// ErrRefused: trying again without a change is useless.
	ErrRefused = errors.New("refused")
	// ErrUnavailable: something that comes by itself is not there yet.
	ErrUnavailable = errors.New("not available yet")
	// ErrLate: the assignment did not come in time.
	ErrLate = errors.New("not assigned in time")
)
