package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts/host"
)

const (
	second = time.Second
	minute = time.Minute
)

// twoMachinesFit says whether the virtual machine of the kernel tests, which do not mind to wait, and a cluster without one fit beside
// that of the walk-through.
func twoMachinesFit() bool {
	const twoMachines = 12 << 30 // their memory, the emulators' buffers, and all the rest
	have, err := host.TotalMemory()
	return err == nil && have >= twoMachines-512<<20 // the kernel keeps some
}

// Nice values. A run waits for the clusters in the end, and nodes of the lab use CPU while they wait: the longer they take, the more
// they take of everything. Plain programs fill what emulated machines leave: their deadlines allow for the time in which that is
// little, while much is compiled for the first time.
const (
	niceMachines = 10 // and what has servers of its own
	nicePlain    = 15
)

// lanesHere is how many parts may run at once here: a cluster with an emulated machine, the kernel tests' machine, and one in the time
// that those leave.
func lanesHere() int {
	if twoMachinesFit() {
		return 3
	}
	return 2
}

// seldomCollected is the environment of plain parts: compilers, linkers and tests take a tenth less of the CPU where memory is ample.
// Programs whose memory is measured are of no such part.
func seldomCollected() []string {
	if twoMachinesFit() {
		return []string{"GOGC=400"}
	}
	return nil
}

// allParts are the parts in the order in which they start: the artifacts, which
// most of the others need, then those with emulated machines, and beside them,
// in the lane that those leave, first what fails fast, then what waits for servers; last what keeps processors busy.
func allParts() []part {
	plain := seldomCollected()
	return []part{
		{
			name: "artifacts", what: "Kubernetes, CoreDNS, containerd 2, a kernel and Debian packages into the cache",
			cold: 12 * minute, warm: 10 * second, deadline: 50 * minute, alone: true,
			packages: []string{"kmod"}, run: makeArtifacts,
		},
		{
			name: "demo", what: "the walk-through with its counter-proofs and kills (make demo)",
			cold: 12 * minute, warm: 9 * minute, deadline: 45 * minute, after: []string{"artifacts"},
			heavy: true, run: demo,
		},
		{
			name: "ipv6", what: "a whole IPv6 cluster, kube-proxy in each of its modes",
			cold: 6 * minute, warm: 4 * minute, deadline: 30 * minute, after: []string{"artifacts"},
			heavy: true, run: ipv6Tests,
		},
		{
			name: "kernel", what: "tests against a real kernel with 802.1Q, in one virtual machine",
			cold: 6 * minute, warm: 4 * minute, deadline: 30 * minute, after: []string{"artifacts"},
			heavy: !twoMachinesFit(), devices: true, nice: niceMachines, run: kernel,
		},
		{
			name: "generate", what: "the committed generated code is current",
			cold: 5 * minute, warm: 15 * second, deadline: 40 * minute, nice: nicePlain, env: plain, run: checkGenerated,
		},
		{
			name: "lint", what: "gofmt, go vet, staticcheck, with all build tags",
			cold: 6 * minute, warm: 30 * second, deadline: 40 * minute, nice: nicePlain, env: plain, run: lint,
		},
		{
			name: "build", what: "amd64 and arm64 executables and images, size budgets, import rules",
			cold: 4 * minute, warm: minute, deadline: 40 * minute, nice: nicePlain, env: plain, run: build,
		},
		{
			name: "lab", what: "the lab's parts: instances, ENIs, packets, programs that are not ours; containerd 2",
			cold: 6 * minute, warm: 4 * minute, deadline: 40 * minute, after: []string{"artifacts"},
			heavy: !twoMachinesFit(), devices: true, nice: niceMachines, run: labTests,
		},
		{
			name: "envtest", what: "the control plane's code against a real API server and etcd",
			cold: 3 * minute, warm: 2 * minute, deadline: 40 * minute, after: []string{"artifacts"}, nice: niceMachines, env: plain, run: envtest,
		},
		{
			name: "agent", what: "the node agent's executable on the lab's EC2, with a real API server, in namespaces",
			cold: 2 * minute, warm: minute, deadline: 40 * minute, after: []string{"artifacts"},
			devices: true, nice: niceMachines, run: agentTests,
		},
		{
			name: "fuzz", what: "each parser of outside input, a few seconds",
			cold: 8 * minute, warm: 2 * minute, deadline: 40 * minute, nice: nicePlain, env: plain, run: fuzz,
		},
		{
			name: "unit", what: "plain tests, the product's with the race detector",
			cold: 10 * minute, warm: 2 * minute, deadline: 40 * minute, nice: nicePlain, env: plain,
			packages: []string{"gcc", "libc6-dev"}, run: unit,
		},
	}
}

// choose returns the parts named in only (all when it is empty), with the parts
// that they need, in their order, and a line for each part that is left out.
func choose(all []part, only string) (chosen []part, left []string, err error) {
	if only == "" {
		return all, nil, nil
	}
	want := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		i := slices.IndexFunc(all, func(p part) bool { return p.name == name })
		if i < 0 {
			names := make([]string, len(all))
			for i, p := range all {
				names[i] = p.name
			}
			return fmt.Errorf("there is no part %q; the parts are %s", name, strings.Join(names, ", "))
		}
		want[name] = true
		for _, a := range all[i].after {
			if err := add(a); err != nil {
				return err
			}
		}
		return nil
	}
	for name := range strings.SplitSeq(only, ",") {
		if err := add(strings.TrimSpace(name)); err != nil {
			return nil, nil, err
		}
	}
	for _, p := range all {
		if want[p.name] {
			chosen = append(chosen, p)
		} else {
			left = append(left, "part "+p.name+": not named by -only")
		}
	}
	return chosen, left, nil
}
