package ec2

import (
	"maps"
	"time"
)

// idempotent is the answer to a call with a client token.
type idempotent struct {
	params map[string]string
	out    []element
	at     time.Time
}

// tokenLife is how long a client token is remembered.
const tokenLife = time.Hour

// idempotent runs a call once for each client token of a caller: the same token with the same parameters gets the first
// answer again. Lock held.
func (c *call) idempotent(run func(*call) ([]element, error)) ([]element, error) {
	token := c.p.str("ClientToken")
	if token == "" {
		return run(c)
	}
	params := c.p.flat()
	key := c.api + " " + c.who.role + " " + token
	if before, ok := c.tokens[key]; ok && c.now.Sub(before.at) < tokenLife {
		if !maps.Equal(before.params, params) {
			return nil, errf("IdempotentParameterMismatch", "The client token %s was used with other parameters before.", token)
		}
		return before.out, nil
	}
	out, err := run(c)
	if err != nil {
		return nil, err
	}
	if len(c.tokens) >= 4096 {
		maps.DeleteFunc(c.tokens, func(_ string, t idempotent) bool { return c.now.Sub(t.at) >= tokenLife })
	}
	c.tokens[key] = idempotent{params: params, out: out, at: c.now}
	return out, nil
}
