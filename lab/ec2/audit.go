package ec2

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// event is a line of the audit log, with CloudTrail's names.
type event struct {
	EventTime         time.Time         `json:"eventTime"`
	EventSource       string            `json:"eventSource"`
	EventName         string            `json:"eventName"`
	AWSRegion         string            `json:"awsRegion"`
	UserIdentity      identityField     `json:"userIdentity"`
	SourceIPAddress   string            `json:"sourceIPAddress"`
	UserAgent         string            `json:"userAgent,omitempty"`
	RequestID         string            `json:"requestID"`
	ErrorCode         string            `json:"errorCode,omitempty"`
	ErrorMessage      string            `json:"errorMessage,omitempty"`
	RequestParameters map[string]string `json:"requestParameters,omitempty"`
}

type identityField struct {
	ARN string `json:"arn,omitempty"`
}

func (r *Region) audit(c *call, svc service, req *http.Request, err error) {
	if r.cfg.Audit == nil {
		return
	}
	p := c.p.flat()
	for _, k := range []string{"Action", "Version", "UserData", ""} {
		delete(p, k)
	}
	e := event{
		EventTime: c.now.UTC(), EventSource: svc.name + ".amazonaws.com", EventName: c.api, AWSRegion: r.cfg.Region,
		UserIdentity: identityField{ARN: c.who.arn}, SourceIPAddress: req.RemoteAddr, UserAgent: req.UserAgent(),
		RequestID: c.requestID, RequestParameters: p,
	}
	var ae *apiError
	if errors.As(err, &ae) {
		e.ErrorCode, e.ErrorMessage = ae.code, ae.message
	} else if err != nil {
		e.ErrorCode, e.ErrorMessage = "ClientGone", err.Error()
	}
	line, merr := json.Marshal(e)
	if merr != nil {
		r.cfg.Log.Error("encode an audit event", "error", merr)
		return
	}
	r.auditMu.Lock()
	defer r.auditMu.Unlock()
	if _, werr := r.cfg.Audit.Write(append(line, '\n')); werr != nil {
		r.cfg.Log.Error("write the audit log", "error", werr)
	}
}
