package kube

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/branchline-cni/branchline/lab/artifacts"
)

func TestKubeconfigOpensAServerOfTheSameAuthority(t *testing.T) {
	ca, err := newAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := ca.kubeconfig("c", "https://127.0.0.1:1", subject{user: "jane", groups: []string{"system:masters"}})
	if err != nil {
		t.Fatal(err)
	}
	var k kubeconfig
	if err := yaml.UnmarshalStrict(raw, &k); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(k.Clusters[0].Cluster.CA) {
		t.Fatal("the kubeconfig holds no certificate authority")
	}
	client, err := tls.X509KeyPair(k.Users[0].User.Cert, k.Users[0].User.Key)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.issue(subject{user: "server", addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	server, err := tls.X509KeyPair(pair.cert, pair.key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan error, 1)
	go func() {
		done <- tls.Client(a, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{client}, ServerName: "127.0.0.1"}).HandshakeContext(t.Context())
	}()
	s := tls.Server(b, &tls.Config{ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert, Certificates: []tls.Certificate{server}, MaxVersion: tls.VersionTLS12})
	if err := s.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	name := s.ConnectionState().PeerCertificates[0].Subject
	if name.CommonName != "jane" || name.Organization[0] != "system:masters" {
		t.Errorf("the server sees %v", name)
	}
}

func TestClientCertificateServesNothing(t *testing.T) {
	ca, err := newAuthority("test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.issue(subject{user: "jane"})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(pair.cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a client's certificate is good for a server")
	}
}

func TestForwarderPassesBothWaysAndEndsWithClose(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	f, err := Forward("127.0.0.1:0", "", echo.Addr().String(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	dial := func() *net.TCPConn {
		t.Helper()
		c, err := net.DialTimeout("tcp", f.Addr(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c.(*net.TCPConn)
	}
	c := dial()
	io.WriteString(c, "hello")
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("through the forwarder came %q, %v", b, err)
	}
	open := dial()
	io.WriteString(open, "x")
	if _, err := io.ReadFull(open, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	f.Close() // returns only when no connection is left
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("an open connection outlived the forwarder")
	}
}

func testNode() NodeConfig {
	n := NodeConfig{
		Dir: "/state/kube", Name: "n", Address: netip.MustParseAddr("192.168.0.20"), Nameserver: netip.MustParseAddr("192.168.0.2"),
		InstanceID: "i-1", InstanceType: "m5.large", Zone: "us-west-2a",
		Programs: Programs{Hyperkube: "/h", Runtime: artifacts.Tree{Dir: "/r"}, Tools: artifacts.Tree{Dir: "/t"}, Loopback: "/l", Images: "/i"},
	}
	n.setDefaults()
	return n
}

func TestNodeConfigNamesEveryMissingField(t *testing.T) {
	n := testNode()
	if err := n.validate(); err != nil {
		t.Fatal(err)
	}
	n.Zone, n.Programs.Loopback, n.Address, n.ProxyMode = "", "", netip.Addr{}, "userspace"
	err := n.validate()
	for _, want := range []string{"Zone", "Programs.Loopback", "Address", "userspace"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error %v does not name %s", err, want)
		}
	}
}

func TestANodeOfAnIPv6ClusterHasItsAddressAndNameserverOfThatFamily(t *testing.T) {
	n := testNode()
	n.Address = netip.MustParseAddr("2600:1f14::4")
	if err := n.validate(); err != nil {
		t.Fatal(err)
	}
	raw, err := n.kubeletConfig()
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Address    string
		ClusterDNS []string
	}
	if err := yaml.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	if config.Address != "::" || len(config.ClusterDNS) != 1 || !ipv6.services.Contains(netip.MustParseAddr(config.ClusterDNS[0])) {
		t.Errorf("kubelet configuration:\n%s", raw)
	}
	if flags := strings.Join(n.kubeletFlags(), "\n"); !strings.Contains(flags, "--node-ip=2600:1f14::4\n") {
		t.Errorf("kubelet flags:\n%s", flags)
	}
	var service struct{ Spec struct{ ClusterIP string } }
	manifests := strings.Split(string(dnsManifest(ipv6)), "\n---\n")
	if err := yaml.Unmarshal([]byte(manifests[len(manifests)-1]), &service); err != nil || service.Spec.ClusterIP != config.ClusterDNS[0] {
		t.Errorf("the DNS service is at %q, the kubelet tells pods %v (%v)", service.Spec.ClusterIP, config.ClusterDNS, err)
	}
	for _, bad := range []string{"fe80::1", "::", "::ffff:192.168.0.20"} {
		n.Address, n.ProxyMode = netip.MustParseAddr(bad), ProxyNFTables
		if n.validate() == nil {
			t.Errorf("a node's address %s is not refused", bad)
		}
	}
}

func TestKubeletLooksLikeOneOfEKS(t *testing.T) {
	n := testNode()
	raw, err := n.kubeletConfig()
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	if config["providerID"] != "aws:///us-west-2a/i-1" || config["cgroupDriver"] != "cgroupfs" {
		t.Errorf("kubelet configuration:\n%s", raw)
	}
	n.Labels = map[string]string{"a": "b"}
	want := "--node-labels=a=b,node.kubernetes.io/instance-type=m5.large,topology.kubernetes.io/region=us-west-2,topology.kubernetes.io/zone=us-west-2a"
	if flags := strings.Join(n.kubeletFlags(), "\n"); !strings.Contains(flags, want) {
		t.Errorf("kubelet flags lack %s:\n%s", want, flags)
	}
}
