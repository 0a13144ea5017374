package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/kube/images"
)

// The paths of a node are those of any node: programs and manifests know them. They must be private to the instance.
const (
	containerdRoot   = "/var/lib/containerd"
	containerdState  = "/run/containerd"
	containerdSocket = "/run/containerd/containerd.sock"
	kubeletRoot      = "/var/lib/kubelet"
	cniConfDir       = "/etc/cni/net.d"
	cniBinDir        = "/opt/cni/bin"
)

// NodeConfig says what StartNode needs.
type NodeConfig struct {
	// Dir holds the node's configuration and keys. The Machine sees it under the same path.
	Dir string
	// Name is the node's name: the instance's private DNS name.
	Name string
	// Address is the instance's that becomes the node's: the primary private one, or in an IPv6 cluster its IPv6 address.
	Address netip.Addr
	// InstanceID, InstanceType and Zone become providerID and the well-known labels.
	InstanceID, InstanceType, Zone string
	// Labels are further labels. The kubelet may not set ones of kubernetes.io.
	Labels map[string]string
	// MaxPods is the kubelet's limit; 0 means 110.
	MaxPods int
	// Nameserver is what pods without cluster DNS use, and CoreDNS forwards to: the VPC's resolver.
	Nameserver netip.Addr

	Programs Programs
	// Containerd holds containerd and its shim, in place of Programs.Runtime's; runc and ctr stay that one's.
	Containerd artifacts.Tree
	// Images are tarballs with further images, imported before the kubelet starts. The Machine sees them under the same
	// path.
	Images []string
	// ProxyMode is kube-proxy's; the default is ProxyNFTables.
	ProxyMode ProxyMode
	// TmpfsSize limits each of the node's memory-backed folders (images, volumes, logs); empty means 2G.
	TmpfsSize string
}

func (n *NodeConfig) setDefaults() {
	if n.ProxyMode == "" {
		n.ProxyMode = ProxyNFTables
	}
	if n.TmpfsSize == "" {
		n.TmpfsSize = "2G"
	}
	if n.Containerd.Dir == "" {
		n.Containerd = n.Programs.Runtime
	}
	if n.MaxPods == 0 {
		n.MaxPods = 110
	}
}

func (n *NodeConfig) validate() error {
	var errs []error
	for name, value := range map[string]string{
		"Dir": n.Dir, "Name": n.Name, "InstanceID": n.InstanceID, "InstanceType": n.InstanceType, "Zone": n.Zone,
		"Programs.Hyperkube": n.Programs.Hyperkube, "Programs.Runtime": n.Programs.Runtime.Dir,
		"Programs.Tools": n.Programs.Tools.Dir, "Programs.Loopback": n.Programs.Loopback, "Programs.Images": n.Programs.Images,
	} {
		if value == "" {
			errs = append(errs, fmt.Errorf("%s is empty", name))
		}
	}
	if err := checkAddress(n.Address); err != nil {
		errs = append(errs, fmt.Errorf("field Address: %w", err))
	}
	if !n.Nameserver.IsValid() {
		errs = append(errs, errors.New("field Nameserver is not set"))
	}
	if err := n.checkProxyMode(n.ProxyMode); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configure node %q: %w", n.Name, err)
	}
	return nil
}

var containerdTemplate = template.Must(template.New("containerd").Parse(`version = 2
root = {{printf "%q" .Root}}
state = {{printf "%q" .State}}
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = {{printf "%q" .Socket}}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {{printf "%q" .Pause}}
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = false

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = {{printf "%q" .BinDir}}
  conf_dir = {{printf "%q" .ConfDir}}

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
`))

func (n *NodeConfig) containerdConfig() ([]byte, error) {
	var b bytes.Buffer
	err := containerdTemplate.Execute(&b, map[string]string{
		"Root": containerdRoot, "State": containerdState, "Socket": containerdSocket,
		"Pause": images.Pause, "BinDir": cniBinDir, "ConfDir": cniConfDir,
	})
	if err != nil {
		return nil, fmt.Errorf("write containerd's configuration for node %s: %w", n.Name, err)
	}
	return b.Bytes(), nil
}

// kubeletConfig is a KubeletConfiguration of kubelet.config.k8s.io/v1beta1.
func (n *NodeConfig) kubeletConfig() ([]byte, error) {
	file := func(name string) string { return filepath.Join(n.Dir, name) }
	family := familyOf(n.Address)
	raw, err := json.Marshal(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"address":    family.any,
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true, "cacheTTL": "2m0s"},
			"x509":      map[string]any{"clientCAFile": file("ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              file("kubelet.crt"),
		"tlsPrivateKeyFile":        file("kubelet.key"),
		"containerRuntimeEndpoint": "unix://" + containerdSocket,
		"providerID":               n.providerID(),
		"maxPods":                  n.MaxPods,
		"clusterDNS":               []string{family.dns.String()},
		"clusterDomain":            "cluster.local",
		"resolvConf":               file("resolv.conf"),
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               "/", // the instance's own
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"serializeImagePulls":      false,
		"volumePluginDir":          filepath.Join(kubeletRoot, "volumeplugins"),
		// The folders are small and in memory, and no image can be fetched again: neither evict nor collect them early.
		"evictionHard": map[string]string{
			"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%",
		},
		"imageGCHighThresholdPercent": 100,
		"imageGCLowThresholdPercent":  99,
		// A node sees what its pods become at once, not by the next look at all of them.
		"nodeStatusUpdateFrequency": "5s",
	})
	if err != nil {
		return nil, fmt.Errorf("write the kubelet's configuration for node %s: %w", n.Name, err)
	}
	return yaml.JSONToYAML(raw)
}

func (n *NodeConfig) providerID() string { return "aws:///" + n.Zone + "/" + n.InstanceID }

// kubeletFlags is what the kubelet's configuration file has no place for.
func (n *NodeConfig) kubeletFlags() []string {
	labels := map[string]string{
		"node.kubernetes.io/instance-type": n.InstanceType,
		"topology.kubernetes.io/zone":      n.Zone,
		"topology.kubernetes.io/region":    strings.TrimRight(n.Zone, "abcdefghijklmnopqrstuvwxyz"),
	}
	maps.Copy(labels, n.Labels)
	pairs := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, k+"="+labels[k])
	}
	return []string{
		"--config=" + filepath.Join(n.Dir, "kubelet.yaml"),
		"--kubeconfig=" + filepath.Join(n.Dir, "kubelet.kubeconfig"),
		"--root-dir=" + kubeletRoot,
		"--cert-dir=" + filepath.Join(kubeletRoot, "pki"),
		"--hostname-override=" + n.Name,
		"--node-ip=" + n.Address.String(),
		"--node-labels=" + strings.Join(pairs, ","),
		// Nobody reads the containers' statistics, and to collect them is a seventh of what an idle kubelet does.
		"--housekeeping-interval=1m",
		"--v=2",
	}
}

// argv is the command line that runs a program with what the runtime's and kube-proxy's programs need to run from where
// they were unpacked. env sets it, for an instance has a PATH of its own, and of two the first would count.
func (n *NodeConfig) argv(program string, args ...string) []string {
	return append([]string{
		"/usr/bin/env",
		// Memory is there, and an emulated CPU is slow: of what an idle node does a good part would be collections.
		"GOGC=400",
		// Nor does it need threads that look for work which another one could do: they spin.
		"GOMAXPROCS=1",
		"PATH=" + n.searchPath(),
		"LD_LIBRARY_PATH=" + n.Programs.Runtime.LibraryPath() + ":" + n.Programs.Tools.LibraryPath(),
		program,
	}, args...)
}

func (n *NodeConfig) searchPath() string {
	return strings.Join([]string{filepath.Join(n.Dir, "bin"), n.Containerd.SearchPath(), n.Programs.Runtime.SearchPath(), n.Programs.Tools.SearchPath(),
		"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}, ":")
}
