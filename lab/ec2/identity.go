package ec2

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/imds"
)

// principal is who a call comes from.
type principal struct {
	arn, userID string
	role        string // name; empty for the operator, who may do everything
}

type credential struct {
	secret, token string
	expires       time.Time // zero: never
	who           principal
}

// AdminCredentials are the operator's: they never expire and may do everything.
func (r *Region) AdminCredentials() (keyID, secret string) {
	return r.iam.adminKey, r.iam.keys[r.iam.adminKey].secret
}

// RoleCredentials issues temporary keys of a role, as an instance of that name gets them from its metadata service.
// false when there is no such role.
func (r *Region) RoleCredentials(role, session string) (imds.Credentials, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.issue(role, session)
}

// issue renews the keys of a role's session when less than half of their life is left. Called with the lock held.
func (r *Region) issue(role, session string) (imds.Credentials, bool) {
	ro := r.iam.roles[role]
	if ro == nil {
		return imds.Credentials{}, false
	}
	now := r.cfg.Now()
	name := role + "/" + session
	if c, ok := r.iam.sessions[name]; ok && c.Expiration.Sub(now) > r.cfg.CredentialLife/2 {
		return c, true
	}
	c := imds.Credentials{
		AccessKeyID: "ASIA" + randomID(16), SecretAccessKey: randomSecret(30), Token: randomSecret(96),
		LastUpdated: now, Expiration: now.Add(r.cfg.CredentialLife),
	}
	r.iam.sessions[name] = c
	r.iam.keys[c.AccessKeyID] = credential{
		secret: c.SecretAccessKey, token: c.Token, expires: c.Expiration,
		who: principal{
			arn:    "arn:aws:sts::" + r.cfg.AccountID + ":assumed-role/" + role + "/" + session,
			userID: ro.id + ":" + session, role: role,
		},
	}
	for id, k := range r.iam.keys {
		if !k.expires.IsZero() && now.Sub(k.expires) > time.Hour {
			delete(r.iam.keys, id)
		}
	}
	return c, true
}

// randomID makes the upper-case letters and digits of an access key. Keys are never made from the seed.
func randomID(n int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand never fails
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}

func randomSecret(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // crypto/rand never fails
	return strings.NewReplacer("-", "a", "_", "b").Replace(base64.URLEncoding.EncodeToString(b))
}
