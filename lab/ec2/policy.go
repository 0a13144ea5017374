package ec2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// policy is an IAM policy document: who may (not) do what on what. Elements that this lab doesn't evaluate are refused
// when the document is put, so that none is silently without effect.
type policy struct {
	Version   string
	ID        string `json:"Id"`
	Statement oneOrMany[statement]
}

type statement struct {
	SID          string `json:"Sid"`
	Effect       string
	Action       oneOrMany[string]
	NotAction    oneOrMany[string]
	Resource     oneOrMany[string]
	NotResource  oneOrMany[string]
	Condition    map[string]map[string]oneOrMany[string]
	Principal    json.RawMessage // in trust policies only
	NotPrincipal json.RawMessage
}

// oneOrMany is a list for which JSON may have its single member.
type oneOrMany[T any] []T

func (m *oneOrMany[T]) UnmarshalJSON(b []byte) error {
	if t := bytes.TrimSpace(b); len(t) > 0 && t[0] == '[' {
		var all []T
		if err := strict(b, &all); err != nil {
			return err
		}
		*m = all
		return nil
	}
	var one T
	if err := strict(b, &one); err != nil {
		return err
	}
	*m = oneOrMany[T]{one}
	return nil
}

func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("text after the document")
	}
	return nil
}

// conditions that are evaluated: operator -> comparison of one value with one pattern.
var conditionOperators = map[string]func(value, pattern string) bool{
	"StringEquals":             func(v, p string) bool { return v == p },
	"StringLike":               match,
	"ForAnyValue:StringEquals": func(v, p string) bool { return v == p },
	"ForAnyValue:StringLike":   match,
	"StringEqualsIgnoreCase":   strings.EqualFold,
}

func parsePolicy(doc string) (*policy, error) {
	var p policy
	if err := strict([]byte(doc), &p); err != nil {
		return nil, err
	}
	if len(p.Statement) == 0 {
		return nil, fmt.Errorf("no statement")
	}
	for i, s := range p.Statement {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("statement %d: %w", i+1, err)
		}
	}
	return &p, nil
}

func (s statement) check() error {
	if s.Effect != "Allow" && s.Effect != "Deny" {
		return fmt.Errorf("effect %q: want Allow or Deny", s.Effect)
	}
	if (len(s.Action) == 0) == (len(s.NotAction) == 0) {
		return fmt.Errorf("want either Action or NotAction")
	}
	if (len(s.Resource) == 0) == (len(s.NotResource) == 0) {
		return fmt.Errorf("want either Resource or NotResource")
	}
	if s.Principal != nil || s.NotPrincipal != nil {
		return fmt.Errorf("a policy of an identity has no Principal")
	}
	for _, a := range slices.Concat(s.Action, s.NotAction) {
		if svc, name, ok := strings.Cut(a, ":"); a != "*" && (!ok || svc == "" || name == "") {
			return fmt.Errorf("action %q: want service:Name", a)
		}
	}
	for op, keys := range s.Condition {
		if conditionOperators[op] == nil {
			return fmt.Errorf("condition operator %s is not known here", op)
		}
		for k := range keys {
			if !knownKey(k) {
				return fmt.Errorf("condition key %s is not known here", k)
			}
		}
	}
	return nil
}

// target is one resource that a call touches, with what conditions are compared with. As in EC2 ("Actions, resources, and
// condition keys for Amazon EC2") a key is there only for resources that have it: a condition on one that is not there is
// false, so that a statement with it never applies to, say, a Describe call or AssociateTrunkInterface, which know no resources.
type target struct {
	arn  string            // "*" for actions that know no resources
	tags map[string]string // ec2:ResourceTag and aws:ResourceTag: of a resource that was there before the call
	// aws:RequestTag: what the request gives to a resource that it creates or tags.
	request map[string]string
	// ec2:CreateAction: the API that creates the resource which CreateTags is about; empty when CreateTags is called itself.
	createAction string
}

// Condition keys. Those that end in a slash are followed by a tag's key.
const (
	keyCreateAction   = "ec2:CreateAction"
	keyEC2ResourceTag = "ec2:ResourceTag/"
	keyResourceTag    = "aws:ResourceTag/"
	keyRequestTag     = "aws:RequestTag/"
)

func knownKey(key string) bool {
	return key == keyCreateAction || slices.ContainsFunc([]string{keyEC2ResourceTag, keyResourceTag, keyRequestTag},
		func(prefix string) bool { return len(key) > len(prefix) && strings.HasPrefix(key, prefix) })
}

// value is what the condition key has for the target; false if it is not there.
func (t target) value(key string) (string, bool) {
	if key == keyCreateAction {
		return t.createAction, t.createAction != ""
	}
	tags := t.tags
	if strings.HasPrefix(key, keyRequestTag) {
		tags = t.request
	}
	_, name, _ := strings.Cut(key, "/")
	v, ok := tags[name]
	return v, ok
}

func (s statement) applies(action string, t target) bool {
	anyOf := func(patterns []string, v string, fold bool) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			if fold {
				return match(strings.ToLower(v), strings.ToLower(p))
			}
			return match(v, p)
		})
	}
	if len(s.Action) > 0 && !anyOf(s.Action, action, true) || len(s.NotAction) > 0 && anyOf(s.NotAction, action, true) {
		return false
	}
	if len(s.Resource) > 0 && !anyOf(s.Resource, t.arn, false) || len(s.NotResource) > 0 && anyOf(s.NotResource, t.arn, false) {
		return false
	}
	for op, keys := range s.Condition {
		for key, want := range keys {
			v, ok := t.value(key)
			if !ok || !slices.ContainsFunc(want, func(p string) bool { return conditionOperators[op](v, p) }) {
				return false
			}
		}
	}
	return true
}

type decision int

const (
	implicitDeny decision = iota
	allowed
	explicitDeny
)

// decide evaluates policies as IAM does: a Deny wins, else an Allow is needed.
func decide(policies []*policy, action string, t target) decision {
	d := implicitDeny
	for _, p := range policies {
		for _, s := range p.Statement {
			if !s.applies(action, t) {
				continue
			}
			if s.Effect == "Deny" {
				return explicitDeny
			}
			d = allowed
		}
	}
	return d
}

// match compares with a pattern in which * stands for any text and ? for one character.
func match(s, pattern string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for i < len(s) {
		switch {
		case j < len(pattern) && pattern[j] == '*':
			star, mark = j, i
			j++
		case j < len(pattern) && (pattern[j] == '?' || pattern[j] == s[i]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = mark, star+1
		default:
			return false
		}
	}
	for j < len(pattern) && pattern[j] == '*' {
		j++
	}
	return j == len(pattern)
}
