package ec2

import (
	"fmt"
	"net/http"
)

// apiError is what a caller gets instead of an answer.
type apiError struct {
	code, message string
	status        int
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func errf(code, format string, args ...any) error {
	return &apiError{code: code, message: fmt.Sprintf(format, args...), status: http.StatusBadRequest}
}

func errStatus(status int, code, format string, args ...any) error {
	return &apiError{code: code, message: fmt.Sprintf(format, args...), status: status}
}

// notFound has EC2's code for a kind of resource and its text for an id.
func notFound(code, kind, id string) error {
	return errf(code, "The %s ID '%s' does not exist", kind, id)
}
