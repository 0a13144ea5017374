package ec2

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/imds"
)

type iamState struct {
	adminKey string
	keys     map[string]credential       // access key id -> credential
	sessions map[string]imds.Credentials // role/session -> its current keys
	roles    map[string]*role
	profiles map[string]*profile
	policies map[string]*managedPolicy // by ARN
}

type role struct {
	name, id, arn, trust, path, description string
	created                                 time.Time
	attached                                []string // policy ARNs
	inline                                  map[string]inlinePolicy
}

type inlinePolicy struct {
	doc    string
	parsed *policy
}

type managedPolicy struct {
	arn, name, id string
	parsed        *policy
	created       time.Time
}

type profile struct {
	name, id, arn, path string
	role                string
	created             time.Time
}

func (s *iamState) init(r *Region) {
	s.keys = make(map[string]credential)
	s.sessions = make(map[string]imds.Credentials)
	s.roles = make(map[string]*role)
	s.profiles = make(map[string]*profile)
	s.policies = make(map[string]*managedPolicy)
	for arn, doc := range managedPolicies {
		p, err := parsePolicy(doc)
		if err != nil {
			panic("lab/ec2: built-in policy " + arn + ": " + err.Error()) // a test loads them all
		}
		s.policies[arn] = &managedPolicy{arn: arn, name: arn[strings.LastIndex(arn, "/")+1:], id: "ANPA" + randomID(17), parsed: p, created: r.cfg.Now()}
	}
	s.adminKey = "AKIA" + randomID(16)
	s.keys[s.adminKey] = credential{
		secret: randomSecret(30),
		who:    principal{arn: "arn:aws:iam::" + r.cfg.AccountID + ":user/lab-admin", userID: "AIDA" + randomID(17)},
	}
}

func (s *iamState) policiesOf(name string) []*policy {
	ro := s.roles[name]
	if ro == nil {
		return nil
	}
	var out []*policy
	for _, arn := range ro.attached {
		out = append(out, s.policies[arn].parsed)
	}
	for _, p := range ro.inline {
		out = append(out, p.parsed)
	}
	return out
}

func noSuchEntity(format string, args ...any) error {
	return errStatus(http.StatusNotFound, "NoSuchEntity", format, args...)
}

func onRole(c *call) []target {
	return []target{{arn: "arn:aws:iam::" + c.cfg.AccountID + ":role/" + c.p.str("RoleName")}}
}

func (c *call) role() (*role, error) {
	name, err := c.p.need("RoleName")
	if err != nil {
		return nil, err
	}
	if ro := c.iam.roles[name]; ro != nil {
		return ro, nil
	}
	return nil, noSuchEntity("The role with name %s cannot be found.", name)
}

func (c *call) newName(param string) (string, error) {
	name, err := c.p.need(param)
	if err != nil {
		return "", err
	}
	if len(name) > 128 || strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("+=,.@_-", r))
	}) {
		return "", errf("ValidationError", "The specified value for %s is invalid: %q", param, name)
	}
	return name, nil
}

func (c *call) path() string {
	if p := c.p.str("Path"); p != "" {
		return p
	}
	return "/"
}

func createRole(c *call) ([]element, error) {
	name, err := c.newName("RoleName")
	if err != nil {
		return nil, err
	}
	trust, err := c.p.need("AssumeRolePolicyDocument")
	if err != nil {
		return nil, err
	}
	var doc policy
	if err := strict([]byte(trust), &doc); err != nil {
		return nil, errf("MalformedPolicyDocument", "This policy contains invalid Json: %v", err)
	}
	if c.iam.roles[name] != nil {
		return nil, errStatus(http.StatusConflict, "EntityAlreadyExists", "Role with name %s already exists.", name)
	}
	ro := &role{
		name: name, id: "AROA" + randomID(17), arn: "arn:aws:iam::" + c.cfg.AccountID + ":role" + c.path() + name, trust: trust,
		path: c.path(), description: c.p.str("Description"), created: c.now, inline: make(map[string]inlinePolicy),
	}
	c.iam.roles[name] = ro
	return []element{ro.element()}, nil
}

func (ro *role) element() element {
	return el("Role", join([]element{
		str("Path", ro.path), str("RoleName", ro.name), str("RoleId", ro.id), str("Arn", ro.arn), stamp("CreateDate", ro.created),
		str("AssumeRolePolicyDocument", escaped(ro.trust)), num("MaxSessionDuration", 3600),
	}, optional("Description", ro.description))...)
}

// escaped is how IAM gives documents: percent-encoded by RFC 3986, in which a plus is no space. Clients decode it.
func escaped(document string) string {
	return strings.ReplaceAll(url.QueryEscape(document), "+", "%20")
}

func getRole(c *call) ([]element, error) {
	ro, err := c.role()
	if err != nil {
		return nil, err
	}
	return []element{ro.element()}, nil
}

func attachRolePolicy(c *call) ([]element, error) {
	ro, err := c.role()
	if err != nil {
		return nil, err
	}
	arn, err := c.p.need("PolicyArn")
	if err != nil {
		return nil, err
	}
	if c.iam.policies[arn] == nil {
		return nil, noSuchEntity("Policy %s does not exist or is not attachable.", arn)
	}
	if !slices.Contains(ro.attached, arn) {
		ro.attached = append(ro.attached, arn)
		slices.Sort(ro.attached)
	}
	return nil, nil
}

func detachRolePolicy(c *call) ([]element, error) {
	ro, err := c.role()
	if err != nil {
		return nil, err
	}
	arn, err := c.p.need("PolicyArn")
	if err != nil {
		return nil, err
	}
	i := slices.Index(ro.attached, arn)
	if i < 0 {
		return nil, noSuchEntity("Policy %s was not found.", arn)
	}
	ro.attached = slices.Delete(ro.attached, i, i+1)
	return nil, nil
}

// List calls have one page: a role has few policies.
func listAttachedRolePolicies(c *call) ([]element, error) {
	ro, err := c.role()
	if err != nil {
		return nil, err
	}
	return []element{flag("IsTruncated", false), listOf("AttachedPolicies", "member", ro.attached, func(arn string) []element {
		return []element{str("PolicyName", c.iam.policies[arn].name), str("PolicyArn", arn)}
	})}, nil
}

func (c *call) policyDocument() (string, *policy, error) {
	doc, err := c.p.need("PolicyDocument")
	if err != nil {
		return "", nil, err
	}
	p, perr := parsePolicy(doc)
	if perr != nil {
		return "", nil, errf("MalformedPolicyDocument", "Syntax errors in policy, or an element that this lab does not evaluate: %v", perr)
	}
	return doc, p, nil
}

func putRolePolicy(c *call) ([]element, error) {
	ro, err := c.role()
	if err != nil {
		return nil, err
	}
	name, err := c.newName("PolicyName")
	if err != nil {
		return nil, err
	}
	doc, p, err := c.policyDocument()
	if err != nil {
		return nil, err
	}
	ro.inline[name] = inlinePolicy{doc, p}
	return nil, nil
}

func (c *call) inlinePolicy() (*role, string, error) {
	ro, err := c.role()
	if err != nil {
		return nil, "", err
	}
	name, err := c.p.need("PolicyName")
	if err != nil {
		return nil, "", err
	}
	if _, ok := ro.inline[name]; !ok {
		return nil, "", noSuchEntity("The role policy with name %s cannot be found.", name)
	}
	return ro, name, nil
}

func getRolePolicy(c *call) ([]element, error) {
	ro, name, err := c.inlinePolicy()
	if err != nil {
		return nil, err
	}
	return []element{str("RoleName", ro.name), str("PolicyName", name), str("PolicyDocument", escaped(ro.inline[name].doc))}, nil
}

func deleteRolePolicy(c *call) ([]element, error) {
	ro, name, err := c.inlinePolicy()
	if err != nil {
		return nil, err
	}
	delete(ro.inline, name)
	return nil, nil
}

func listRolePolicies(c *call) ([]element, error) {
	ro, err := c.role()
	if err != nil {
		return nil, err
	}
	names := element{name: "PolicyNames"}
	for _, n := range slices.Sorted(maps.Keys(ro.inline)) {
		names.kids = append(names.kids, str("member", n))
	}
	return []element{flag("IsTruncated", false), names}, nil
}
