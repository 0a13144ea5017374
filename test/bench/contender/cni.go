package contender

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"

	"github.com/branchline-cni/branchline/test/bench/agent"
	"github.com/branchline-cni/branchline/test/bench/world"
)

// CNIVersion is the version at which all plugins are run.
const CNIVersion = "1.0.0"

// useCNI runs an executable as a container runtime does: CNI's environment, the configuration on stdin, and at DEL the
// result of ADD within it.
func (c *Contender) useCNI(path, kind string, config func(Pod) map[string]any) {
	run := func(verb string, p Pod, previous []byte) (Invocation, error) {
		conf := config(p)
		if previous != nil {
			conf = maps.Clone(conf)
			conf["prevResult"] = json.RawMessage(previous)
		}
		stdin, err := json.Marshal(conf)
		if err != nil {
			return Invocation{}, fmt.Errorf("%s of %s's pod %d: its configuration: %w", verb, c.Name, p.N, err)
		}
		name := agent.PodName(kind, p.N)
		return Invocation{
			Argv: []string{path},
			Env: []string{
				"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.ContainerID, "CNI_NETNS=" + p.Netns,
				"CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(path),
				"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=" + agent.PodNamespace + ";K8S_POD_NAME=" + name +
					";K8S_POD_INFRA_CONTAINER_ID=" + p.ContainerID + ";K8S_POD_UID=uid-of-" + name,
			},
			Stdin: stdin,
		}, nil
	}
	c.Add = func(p Pod) (Invocation, error) { return run("ADD", p, nil) }
	c.Del = func(p Pod, result []byte) (Invocation, error) { return run("DEL", p, result) }
}

// reference prepares containernetworking's plugins, with host-local, which keeps its files in dir.
func reference(name, bin, dir string, host *world.Namespace) (*Contender, error) {
	c := &Contender{Name: name}
	config := map[string]any{
		"cniVersion": CNIVersion, "name": "bench-" + name, "type": name, "mtu": 9001,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": filepath.Join(dir, "ipam"),
			"ranges": [][]map[string]string{{{"subnet": "10.17.0.0/16"}}}, "routes": []map[string]string{{"dst": "0.0.0.0/0"}},
		},
	}
	conf := func(Pod) map[string]any { return config }
	if name == VLAN {
		if _, err := makeTrunk(host); err != nil {
			return nil, err
		}
		config["master"] = trunkName
		c.MaxPods = maxVLANs
		conf = func(p Pod) map[string]any {
			own := maps.Clone(config)
			own["vlanId"] = p.N + 1
			return own
		}
	}
	c.useCNI(filepath.Join(bin, name), agent.Regular, conf)
	return c, nil
}
