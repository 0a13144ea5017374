package ec2

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// maxBody bounds a request (user data is 16 KiB at most, a policy 6 KiB).
const maxBody = 1 << 20

// operation is one API.
type operation struct {
	service  string // ec2, iam or sts
	mutating bool
	params   string // names that it knows, separated by spaces
	// targets are what it touches, for authorisation; nil: the action knows no resources. It sees the state.
	targets func(*call) []target
	run     func(*call) ([]element, error)
}

// call is one request on its way.
type call struct {
	*Region
	api       string
	op        operation
	p         *params
	who       principal
	now       time.Time
	requestID string
	fault     Fault // what hits it; the zero value: nothing
}

// service of a Query API by its version and namespace.
type service struct{ name, version, namespace string }

var services = []service{
	{"ec2", "2016-11-15", "http://ec2.amazonaws.com/doc/2016-11-15/"},
	{"iam", "2010-05-08", "https://iam.amazonaws.com/doc/2010-05-08/"},
	{"sts", "2011-06-15", "https://sts.amazonaws.com/doc/2011-06-15/"},
}

// Handler serves the EC2, IAM and STS Query APIs. The signature's scope and the Version parameter say which one is meant.
func (r *Region) Handler() http.Handler { return http.HandlerFunc(r.serve) }

func (r *Region) serve(w http.ResponseWriter, req *http.Request) {
	now := r.cfg.Now()
	c := &call{Region: r, now: now, requestID: r.requestID(), p: &params{}}
	svc := services[0]
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	if err != nil {
		// The client stopped sending, or sent more than any call has.
		http.Error(w, "request body: "+err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	var out []element
	drop := false
	err = func() error {
		sig, err := r.authenticate(c, req, body, &svc)
		if err != nil {
			return err
		}
		if c.p, err = parseForm(queryOf(req, body)); err != nil {
			return err
		}
		if err := c.find(svc, sig.service); err != nil {
			return err
		}
		fault, hit := r.faults.next(c.api, c.who.role)
		if hit {
			if err := wait(req.Context(), fault.Delay); err != nil {
				return err
			}
			if fault.Code != "" {
				return faultError(fault, c)
			}
			drop, c.fault = fault.Drop, fault
		}
		if r.cfg.Latency != nil {
			if err := wait(req.Context(), r.cfg.Latency(c.api)); err != nil {
				return err
			}
		}
		out, err = r.do(c)
		return err
	}()
	r.audit(c, svc, req, err)
	if drop || (err != nil && req.Context().Err() != nil) {
		panic(http.ErrAbortHandler) // net/http's way to close the connection without an answer
	}
	r.answer(w, c, svc, out, err)
}

// queryOf takes the form from the body, or from the URL for GET.
func queryOf(req *http.Request, body []byte) string {
	if req.Method == http.MethodGet {
		return req.URL.RawQuery
	}
	return string(body)
}

func (c *call) find(svc service, scope string) error {
	c.api = c.p.str("Action")
	if c.api == "" {
		return errf("MissingAction", "The request must contain the parameter Action")
	}
	if v := c.p.str("Version"); v != svc.version {
		return errf("InvalidAction", "The action %s of version '%s' is not valid for this web service (%s, version %s).", c.api, v, scope, svc.version)
	}
	op, ok := operations[c.api]
	if !ok || op.service != svc.name {
		return errf("InvalidAction", "The action %s is not valid for this web service.", c.api)
	}
	c.op = op
	return c.p.only("Action Version DryRun " + op.params)
}

// do runs the call on the state.
func (r *Region) do(c *call) ([]element, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.op.service == "ec2" && !r.admit(c.api, c.op.mutating, c.now) {
		return nil, errStatus(http.StatusServiceUnavailable, "RequestLimitExceeded", "Request limit exceeded.")
	}
	if err := c.authorise(); err != nil {
		return nil, err
	}
	dry, err := c.p.bool("DryRun", false)
	if err != nil {
		return nil, err
	}
	if dry {
		return nil, errStatus(http.StatusPreconditionFailed, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
	}
	if c.fault.Late > 0 && !c.op.mutating {
		defer r.asOf(c.now.Add(-c.fault.Late))()
	}
	out, err := c.idempotent(c.op.run)
	did := err == nil
	if c.fault.Repeat && did {
		out, err = c.idempotent(c.op.run) // what the first one did has happened, also where the second is refused
	}
	if did && c.op.mutating {
		r.changed()
	}
	r.startSteps()
	return out, err
}

func (r *Region) answer(w http.ResponseWriter, c *call, svc service, out []element, err error) {
	h := w.Header()
	h.Set("Date", r.cfg.Now().UTC().Format(http.TimeFormat)) // clients correct their clocks by it
	h.Set("Content-Type", "text/xml;charset=UTF-8")
	h.Set("X-Amzn-Requestid", c.requestID)
	var doc []byte
	status := http.StatusOK
	switch {
	case err != nil:
		var e *apiError
		if !errors.As(err, &e) {
			e = &apiError{code: "InternalError", message: err.Error(), status: http.StatusInternalServerError}
		}
		status = e.status
		doc = errorDocument(svc, c.requestID, e)
	case svc.name == "ec2":
		doc = el(c.api+"Response", join([]element{str("requestId", c.requestID)}, out)...).document(svc.namespace)
	default:
		doc = el(c.api+"Response", el(c.api+"Result", out...),
			el("ResponseMetadata", str("RequestId", c.requestID))).document(svc.namespace)
	}
	w.WriteHeader(status)
	_, _ = w.Write(doc) // the client went away; nobody is left to tell
}

func errorDocument(svc service, requestID string, e *apiError) []byte {
	if svc.name == "ec2" {
		return el("Response",
			el("Errors", el("Error", str("Code", e.code), str("Message", e.message))), str("RequestID", requestID)).document("")
	}
	kind := "Sender"
	if e.status >= http.StatusInternalServerError {
		kind = "Receiver"
	}
	return el("ErrorResponse",
		el("Error", str("Type", kind), str("Code", e.code), str("Message", e.message)), str("RequestId", requestID)).document(svc.namespace)
}

func faultError(f Fault, c *call) error {
	msg, status := f.Message, http.StatusBadRequest
	switch f.Code {
	case "RequestLimitExceeded", "Unavailable":
		status = http.StatusServiceUnavailable
	case "InternalError", "InternalFailure":
		status = http.StatusInternalServerError
	case "UnauthorizedOperation":
		status = http.StatusForbidden
		if msg == "" {
			msg = deniedMessage(c.who, "ec2:"+c.api, target{arn: "*"}, implicitDeny)
		}
	}
	if msg == "" {
		msg = "Scripted failure of " + c.api + "."
	}
	return errStatus(status, f.Code, "%s", msg)
}

func (r *Region) requestID() string {
	id := strings.ToLower(randomID(32))
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}
