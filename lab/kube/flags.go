package kube

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	_ "embed"
	"fmt"
	"net/netip"
)

// bootstrapManifest lets the API server's own client use the kubelets (logs, exec).
//
//go:embed manifests/bootstrap.yaml
var bootstrapManifest []byte

const kubeletClient = "kube-apiserver-kubelet-client"

// writeKeys makes the certificate authority, every certificate of the control plane and its kubeconfigs.
func (c *ControlPlane) writeKeys() error {
	var err error
	if c.ca, err = newAuthority("branchline-lab"); err != nil {
		return err
	}
	if err := (keyPair{c.ca.certPEM, c.ca.keyPEM}).write(c.path("pki"), "ca"); err != nil {
		return err
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	for file, s := range map[string]subject{
		"apiserver": {
			user:      "kube-apiserver",
			addresses: []netip.Addr{c.cfg.Address, loopback, familyOf(c.cfg.Address).services.Addr().Next()},
			names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc.cluster.local"},
		},
		"kubelet-client":          {user: kubeletClient},
		"front-proxy":             {user: "front-proxy-client"},
		"kube-controller-manager": {user: "kube-controller-manager", addresses: []netip.Addr{loopback}},
		"kube-scheduler":          {user: "kube-scheduler", addresses: []netip.Addr{loopback}},
	} {
		pair, err := c.ca.issue(s)
		if err != nil {
			return err
		}
		if err := pair.write(c.path("pki"), file); err != nil {
			return err
		}
	}
	for _, name := range []Component{ControllerManager, Scheduler} {
		if err := c.WriteKubeconfig(c.path(string(name)+".kubeconfig"), "system:"+string(name)); err != nil {
			return err
		}
	}
	// The API server signs ServiceAccount tokens with it; RSA, because that is what every consumer of tokens reads.
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make the key of ServiceAccount tokens: %w", err)
	}
	return writeFile(c.path("pki", "sa.key"), encodePEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)), 0o600)
}

// flags are the command lines of the components.
func (c *ControlPlane) flags() map[Component][]string {
	pki := func(file string) string { return c.path("pki", file) }
	etcd := fmt.Sprintf("http://127.0.0.1:%d", etcdPort)
	family := familyOf(c.cfg.Address)
	client := func(name Component) []string {
		return []string{
			"--kubeconfig=" + c.path(string(name)+".kubeconfig"),
			"--authentication-kubeconfig=" + c.path(string(name)+".kubeconfig"),
			"--authorization-kubeconfig=" + c.path(string(name)+".kubeconfig"),
			"--bind-address=127.0.0.1",
			"--tls-cert-file=" + pki(string(name)+".crt"),
			"--tls-private-key-file=" + pki(string(name)+".key"),
			"--leader-elect=false", // there is one of it, and a killed one need not wait for its own lease
			"--kube-api-qps=200", "--kube-api-burst=400",
		}
	}
	return map[Component][]string{
		Etcd: {
			"--name=lab", "--data-dir=" + c.path("etcd"),
			"--unsafe-no-fsync", // the lab survives kills of its programs, not of its machine
			"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
			"--listen-peer-urls=http://127.0.0.1:0", "--log-level=warn",
		},
		APIServer: {
			"--etcd-servers=" + etcd,
			"--bind-address=" + family.any, fmt.Sprintf("--secure-port=%d", apiPort),
			"--advertise-address=" + c.cfg.Address.String(),
			"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
			"--client-ca-file=" + pki("ca.crt"),
			"--kubelet-client-certificate=" + pki("kubelet-client.crt"), "--kubelet-client-key=" + pki("kubelet-client.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"),
			"--kubelet-preferred-address-types=InternalIP", // nobody resolves a node's name here
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + pki("sa.key"), "--service-account-signing-key-file=" + pki("sa.key"),
			"--requestheader-client-ca-file=" + pki("ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy.crt"), "--proxy-client-key-file=" + pki("front-proxy.key"),
			"--service-cluster-ip-range=" + family.services.String(),
			// No kube-proxy runs beside it: webhooks and API services behind a Service are called at their endpoints.
			"--enable-aggregator-routing=true",
			"--authorization-mode=Node,RBAC",
			// Webhooks and ValidatingAdmissionPolicy are on by default.
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--v=2",
		},
		ControllerManager: append(client(ControllerManager),
			"--use-service-account-credentials=true", "--service-account-private-key-file="+pki("sa.key"),
			"--root-ca-file="+pki("ca.crt"),
			"--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
			"--cluster-name="+clusterName,
			"--v=2",
		),
		Scheduler: append(client(Scheduler), "--v=2"),
	}
}
