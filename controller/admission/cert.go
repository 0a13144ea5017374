package admission

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Where the certificates are kept, so that all replicas and all restarts use the same.
const (
	SecretNamespace = "kube-system"
	SecretName      = "branchline-webhook-certs"

	keyCA, keyCAKey = "ca.crt", "ca.key"
	validity        = 10 * 365 * 24 * time.Hour
)

// Certificates are a CA and the serving certificate that it signed, in PEM.
type Certificates struct {
	CA, CAKey, Cert, Key []byte
}

// TLS returns the serving certificate.
func (c *Certificates) TLS() (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("read the webhooks' serving certificate: %w", err)
	}
	return &pair, nil
}

// Issue makes a serving certificate for the hosts (names or addresses). It is signed by the CA in have, where that can be
// used, else by a new one. The result is have itself when its certificate serves all the hosts already.
func Issue(have *Certificates, hosts []string, now time.Time) (*Certificates, error) {
	if have != nil && serves(have, hosts, now) {
		return have, nil
	}
	c := &Certificates{}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	if have != nil {
		if pair, err := tls.X509KeyPair(have.CA, have.CAKey); err == nil {
			if key, ok := pair.PrivateKey.(*ecdsa.PrivateKey); ok && pair.Leaf != nil && now.Before(pair.Leaf.NotAfter) {
				ca, caKey, c.CA, c.CAKey = pair.Leaf, key, have.CA, have.CAKey
			}
		}
	}
	var err error
	if ca == nil {
		t := template("branchline-webhook-ca", now)
		t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
		if c.CA, c.CAKey, ca, caKey, err = sign(t, nil, nil); err != nil {
			return nil, fmt.Errorf("make the webhooks' CA: %w", err)
		}
	}
	t := template("branchline-webhook", now)
	t.ExtKeyUsage, t.KeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, x509.KeyUsageDigitalSignature
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	if c.Cert, c.Key, _, _, err = sign(t, ca, caKey); err != nil {
		return nil, fmt.Errorf("make the webhooks' serving certificate: %w", err)
	}
	return c, nil
}

func serves(c *Certificates, hosts []string, now time.Time) bool {
	pair, err := tls.X509KeyPair(c.Cert, c.Key)
	if err != nil || pair.Leaf == nil {
		return false
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.CA) {
		return false
	}
	for _, h := range hosts {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: h, Roots: roots, CurrentTime: now}); err != nil {
			return false
		}
	}
	return true
}

func template(name string, now time.Time) *x509.Certificate {
	// The API server's clock may be behind ours.
	return &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity)}
}

func sign(t, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (cert, key []byte, parsed *x509.Certificate, private *ecdsa.PrivateKey, err error) {
	if private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return
	}
	if t.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return
	}
	if parent == nil {
		parent, parentKey = t, private
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, &private.PublicKey, parentKey)
	if err != nil {
		return
	}
	if parsed, err = x509.ParseCertificate(der); err != nil {
		return
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), parsed, private, nil
}

// Load reads the certificates from their Secret, and makes or completes them where they are missing or don't serve the
// hosts. Replicas that start at once end up with the same ones.
func Load(ctx context.Context, c client.Client, read client.Reader, hosts []string, now time.Time) (*Certificates, error) {
	if len(hosts) == 0 {
		return nil, errors.New("no host name to make the webhooks' certificate for")
	}
	for {
		var s corev1.Secret
		err := read.Get(ctx, client.ObjectKey{Namespace: SecretNamespace, Name: SecretName}, &s)
		found := err == nil
		if client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("read Secret %s/%s: %w", SecretNamespace, SecretName, err)
		}
		have := &Certificates{CA: s.Data[keyCA], CAKey: s.Data[keyCAKey], Cert: s.Data[corev1.TLSCertKey], Key: s.Data[corev1.TLSPrivateKeyKey]}
		want, err := Issue(have, hosts, now)
		if err != nil || want == have {
			return want, err
		}
		s.Data = map[string][]byte{keyCA: want.CA, keyCAKey: want.CAKey, corev1.TLSCertKey: want.Cert, corev1.TLSPrivateKeyKey: want.Key}
		if found {
			err = c.Update(ctx, &s)
		} else {
			s.ObjectMeta, s.Type = metav1.ObjectMeta{Namespace: SecretNamespace, Name: SecretName}, corev1.SecretTypeTLS
			err = c.Create(ctx, &s)
		}
		if err == nil {
			return want, nil
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("write Secret %s/%s: %w", SecretNamespace, SecretName, err)
		}
	}
}
