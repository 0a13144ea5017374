package product

import (
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/build/image"
)

// Where the executables are in the node agent's image. The agent's name is one
// that monitoring looks for; what is in pluginDir goes onto the host.
const (
	AgentPath = "/app/aws-k8s-agent"
	PluginDir = "/opt/branchline/bin"
)

// CorePlugins are the executables of another project in the node agent's image,
// at go.mod's version of it: what the chain of our conflist needs (portmap,
// bandwidth), what runtimes expect on a node (loopback), and what users of stock
// nodes chain by themselves (tuning, host-local). Sizes, stripped, amd64:
// 3.0 to 3.5 MB each.
func CorePlugins() []Program {
	const plugins = "github.com/containernetworking/plugins/plugins/"
	return []Program{
		{Name: "loopback", Package: plugins + "main/loopback", MaxBytes: 6_000_000},
		{Name: "host-local", Package: plugins + "ipam/host-local", MaxBytes: 6_000_000},
		{Name: "portmap", Package: plugins + "meta/portmap", MaxBytes: 6_000_000},
		{Name: "bandwidth", Package: plugins + "meta/bandwidth", MaxBytes: 6_000_000},
		{Name: "tuning", Package: plugins + "meta/tuning", MaxBytes: 6_000_000},
	}
}

// NodePlugins are our own executables that go onto the host.
func NodePlugins() []string { return []string{"aws-cni", "egress-cni"} }

// AgentImage is the image of the DaemonSet aws-node, for the node agent and for
// its init container, from executables in folder bin.
func AgentImage(name, arch, bin string) image.Spec {
	files := []image.File{
		{Path: AgentPath, From: filepath.Join(bin, "ipamd")},
		{Path: "/app/aws-cni", Link: PluginDir + "/aws-cni"},
		{Path: "/tmp", Mode: 0o777 | os.ModeSticky},
	}
	for _, name := range NodePlugins() {
		files = append(files, image.File{Path: PluginDir + "/" + name, From: filepath.Join(bin, name)})
	}
	for _, p := range CorePlugins() {
		files = append(files, image.File{Path: PluginDir + "/" + p.Name, From: filepath.Join(bin, p.Name)})
	}
	return image.Spec{Name: name, Arch: arch, Entrypoint: []string{AgentPath, "run"}, Env: path, Files: files}
}

// ControllerImage is the image of the control plane's Deployment.
func ControllerImage(name, arch, bin string) image.Spec {
	return image.Spec{
		Name: name, Arch: arch, Entrypoint: []string{"/app/vpc-controller"}, User: "65532:65532", Env: path,
		Files: []image.File{
			{Path: "/app/vpc-controller", From: filepath.Join(bin, "vpc-controller")},
			{Path: "/tmp", Mode: 0o777 | os.ModeSticky},
		},
	}
}

var path = []string{"PATH=/app"}
