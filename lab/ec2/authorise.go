package ec2

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
)

// authenticate verifies the signature and says whose it is.
func (r *Region) authenticate(c *call, req *http.Request, body []byte, svc *service) (signature, error) {
	sig, err := parseAuthorization(req.Header.Get("Authorization"))
	if err != nil {
		if req.Header.Get("Authorization") == "" {
			return sig, errStatus(http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token")
		}
		return sig, errStatus(http.StatusForbidden, "IncompleteSignature", "Authorization header: %v", err)
	}
	i := slices.IndexFunc(services, func(s service) bool { return s.name == sig.service })
	if i < 0 {
		return sig, errStatus(http.StatusForbidden, "SignatureDoesNotMatch", "Credential should be scoped to correct service: 'ec2', 'iam' or 'sts'.")
	}
	*svc = services[i]
	// IAM and STS are global, their signatures may name us-east-1.
	if sig.region != r.cfg.Region && (svc.name == "ec2" || sig.region != "us-east-1") {
		return sig, errStatus(http.StatusForbidden, "SignatureDoesNotMatch", "Credential should be scoped to a valid region: %s, not %s.", r.cfg.Region, sig.region)
	}
	r.mu.Lock()
	cred, ok := r.iam.keys[sig.keyID]
	r.mu.Unlock()
	if !ok || cred.token != req.Header.Get("X-Amz-Security-Token") {
		if svc.name == "ec2" {
			return sig, errStatus(http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials")
		}
		return sig, errStatus(http.StatusForbidden, "InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	c.who = cred.who
	if !cred.expires.IsZero() && !cred.expires.After(c.now) {
		if svc.name == "ec2" {
			return sig, errf("RequestExpired", "Request has expired.")
		}
		return sig, errStatus(http.StatusForbidden, "ExpiredToken", "The security token included in the request is expired")
	}
	if err := sig.verify(req, body, cred.secret, c.now); err != nil {
		switch {
		case errors.Is(err, errSkew) && svc.name == "ec2":
			return sig, errf("RequestExpired", "Request has expired.")
		case svc.name == "ec2":
			return sig, errStatus(http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials")
		}
		return sig, errStatus(http.StatusForbidden, "SignatureDoesNotMatch", "Signature not valid: %v", err)
	}
	return sig, nil
}

// authorise evaluates the caller's policies for the call and, where it sets tags, for CreateTags too. Lock held.
func (c *call) authorise() error {
	if c.who.role == "" || c.api == "GetCallerIdentity" {
		return nil
	}
	policies := c.iam.policiesOf(c.who.role)
	targets := []target{{arn: "*"}}
	if c.op.targets != nil {
		targets = c.op.targets(c)
	}
	action := c.op.service + ":" + c.api
	for _, t := range targets {
		if d := decide(policies, action, t); d != allowed {
			return c.refuse(action, t, d)
		}
	}
	for _, spec := range c.p.items("TagSpecification") {
		t := target{arn: c.arn(spec.str("ResourceType"), "*"), request: tagsIn(spec), createAction: c.api}
		if d := decide(policies, "ec2:CreateTags", t); d != allowed {
			return c.refuse("ec2:CreateTags", t, d)
		}
	}
	return nil
}

// tagsIn are the tags of a request or of one of its TagSpecifications, not checked yet.
func tagsIn(p *params) map[string]string {
	tags := make(map[string]string)
	for _, t := range p.items("Tag") {
		tags[t.str("Key")] = t.str("Value")
	}
	return tags
}

// newTags are the tags that the request gives to what it creates of a kind.
func (c *call) newTags(kind string) map[string]string {
	for _, spec := range c.p.items("TagSpecification") {
		if spec.str("ResourceType") == kind {
			return tagsIn(spec)
		}
	}
	return nil
}

func (c *call) refuse(action string, t target, d decision) error {
	if c.op.service == "ec2" {
		return errStatus(http.StatusForbidden, "UnauthorizedOperation", "%s", deniedMessage(c.who, action, t, d))
	}
	return errStatus(http.StatusForbidden, "AccessDenied", "User: %s", deniedText(c.who, action, t, d))
}

// deniedMessage has EC2's text. AWS names no resource for actions that know none.
func deniedMessage(who principal, action string, t target, d decision) string {
	return "You are not authorized to perform this operation. User: " + deniedText(who, action, t, d)
}

func deniedText(who principal, action string, t target, d decision) string {
	on := ""
	if t.arn != "*" {
		on = " on resource: " + t.arn
	}
	why := fmt.Sprintf("because no identity-based policy allows the %s action", action)
	if d == explicitDeny {
		why = "with an explicit deny in an identity-based policy"
	}
	return fmt.Sprintf("%s is not authorized to perform: %s%s %s", who.arn, action, on, why)
}

// on names resources by the ids in the request, with the tags that they have.
func on(pairs ...string) func(*call) []target {
	return func(c *call) []target {
		var out []target
		for i := 0; i+1 < len(pairs); i += 2 {
			kind, param := pairs[i], pairs[i+1]
			if c.p.child(param).set {
				id := c.p.str(param)
				out = append(out, target{arn: c.arn(kind, id), tags: c.tags[id]})
			}
			for _, id := range c.p.strs(param) {
				out = append(out, target{arn: c.arn(kind, id), tags: c.tags[id]})
			}
		}
		if len(out) == 0 {
			return []target{{arn: "*"}}
		}
		return out
	}
}

// creating adds the resource that the call makes, which has no id yet.
func creating(kind string, pairs ...string) func(*call) []target {
	rest := on(pairs...)
	return func(c *call) []target {
		out := []target{{arn: c.arn(kind, "*"), request: c.newTags(kind)}}
		for _, t := range rest(c) {
			if t.arn != "*" {
				out = append(out, t)
			}
		}
		return out
	}
}
