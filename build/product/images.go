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

// CorePlugins are the executables of other projects in the node agent's image
// that a container runtime needs beside ours.
func CorePlugins() []Program {
	return []Program{
		{Name: "loopback", Package: "github.com/containernetworking/plugins/plugins/main/loopback"},
	}
}

// AgentImage is the image of the DaemonSet aws-node, for the node agent and for
// its init container, from executables in folder bin.
func AgentImage(name, arch, bin string) image.Spec {
	files := []image.File{
		{Path: AgentPath, From: filepath.Join(bin, "ipamd")},
		{Path: PluginDir + "/aws-cni", From: filepath.Join(bin, "aws-cni")},
		{Path: "/app/aws-cni", Link: PluginDir + "/aws-cni"},
		{Path: "/tmp", Mode: 0o777 | os.ModeSticky},
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
