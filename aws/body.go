package aws

import (
	"context"
	"io"

	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// ReadableBody makes each request's body one that net/http reads and can't let write itself (io.WriterTo). It is an API
// option of clients.
//
// Once the head of an answer is there the SDK closes the request's body. net/http may not have looked past the body's
// end by then, as it does to see that there is no more; closed, the SDK's io.WriterTo answers that look with an error,
// and net/http closes the connection under the answer that is being read ("use of closed network connection"). A closed
// body that is read is at its end, which is what net/http wants to hear.
func ReadableBody(stack *middleware.Stack) error {
	return stack.Build.Add(middleware.BuildMiddlewareFunc("ReadableBody", func(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (middleware.BuildOutput, middleware.Metadata, error) {
		if req, ok := in.Request.(*smithyhttp.Request); ok {
			if body, ok := req.GetStream().(io.ReadSeeker); ok {
				plain, err := req.SetStream(struct{ io.ReadSeeker }{body})
				if err != nil {
					return middleware.BuildOutput{}, middleware.Metadata{}, err
				}
				in.Request = plain
			}
		}
		return next.HandleBuild(ctx, in)
	}), middleware.After)
}
