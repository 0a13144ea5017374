package instance

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"

	"github.com/branchline-cni/branchline/lab/instance/guest"
)

// vmPlan is everything that QEMU is told when it starts.
type vmPlan struct {
	name           string
	memoryMiB      int
	cpus           int
	ports          int // root ports for hot-plugged ENIs
	image          string
	initramfs      string
	runDir         string // sockets; short, for a unix socket's path has at most 107 bytes
	consoleLogFile string
	hugeMemory     bool // the memory is memoryFD; else QEMU makes it
}

func (p vmPlan) rootSocket() string  { return filepath.Join(p.runDir, "root.sock") }
func (p vmPlan) stateSocket() string { return filepath.Join(p.runDir, "state.sock") }

// File descriptors that QEMU inherits: its ends of two socket pairs, which exist before QEMU does, so that the guest finds its
// supervisor connected, and end with the supervisor; and the guest's memory.
const (
	agentFD  = 3
	qmpFD    = 4
	memoryFD = 5
)

// kernelArguments leave out what costs an emulated CPU most and serves nobody here: hardening against what isn't there
// (mitigations, zeroed allocations, random stack offsets, checked copies, audit, security modules), pages of 2 MiB, of which
// a program that starts fills some hundred kilobytes, accounting of pressure at each switch of tasks, and watchdogs, which a
// busy machine makes bark: one of them would have the clock read from an emulated device. norandmaps: QEMU keeps what it
// has translated of a program by its virtual address; at other addresses at each start, a program is translated at each start,
// which takes two fifths of a pod's start, and more where the translations no longer fit.
const kernelArguments = "console=ttyS0 quiet panic=-1 random.trust_cpu=on no_timer_check tsc=reliable nowatchdog " +
	"mitigations=off init_on_alloc=0 randomize_kstack_offset=off hardened_usercopy=off audit=0 lsm=yama transparent_hugepage=never psi=0 norandmaps"

func portID(n int) string { return "rp" + strconv.Itoa(n) }

// args is QEMU's command line. TCG, because what the lab shows must not depend on whether the machine lends its KVM.
func (p vmPlan) args() []string {
	memory := "memory-backend-memfd"
	if p.hugeMemory {
		memory = fmt.Sprintf("memory-backend-file,mem-path=/proc/self/fd/%d", memoryFD)
	}
	args := []string{
		"-name", p.name,
		"-M", "q35,usb=off", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-smp", strconv.Itoa(p.cpus), "-m", strconv.Itoa(p.memoryMiB) + "M",
		// virtiofs needs the guest's memory shared with its daemons
		"-object", fmt.Sprintf("%s,id=mem,size=%dM,share=on", memory, p.memoryMiB), "-numa", "node,memdev=mem",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-serial", "file:" + p.consoleLogFile,
		"-kernel", p.image, "-initrd", p.initramfs,
		"-append", kernelArguments,
		"-chardev", "socket,id=qmp,fd=" + strconv.Itoa(qmpFD), "-mon", "chardev=qmp,mode=control",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,fd=" + strconv.Itoa(agentFD),
		"-device", "virtserialport,chardev=agent,name=" + guest.VMPort,
	}
	for _, fs := range []struct{ tag, socket string }{{guest.VMRootTag, p.rootSocket()}, {guest.VMStateTag, p.stateSocket()}} {
		args = append(args, "-chardev", "socket,id=fs-"+fs.tag+",path="+fs.socket, "-device", "vhost-user-fs-pci,queue-size=1024,chardev=fs-"+fs.tag+",tag="+fs.tag)
	}
	for n := range p.ports {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=%s,chassis=%d,slot=%d", portID(n), n+1, n+1))
	}
	return args
}

// virtiofsdArgs shares folder source. With cache=always the guest doesn't ask again for what it knows of the machine's
// files, which under TCG is most of their cost; the state folder, which both sides write, is asked for (auto).
func virtiofsdArgs(socket, source, cache string) []string {
	return []string{"--socket-path=" + socket, "-o", "source=" + source, "-o", "cache=" + cache, "-o", "sandbox=chroot", "-o", "xattr", "--thread-pool-size=4"}
}

// eniPlan is one hot-plugged ENI: its QEMU objects and its two sockets.
type eniPlan struct {
	eniID  string
	mac    net.HardwareAddr
	port   int
	mtu    int
	runDir string
}

func (e eniPlan) netdevID() string { return "net-" + e.eniID }
func (e eniPlan) deviceID() string { return "dev-" + e.eniID }

// The socket paths carry the port's number, not the ENI's id, to stay short. A port has one ENI at a time.
func (e eniPlan) qemuSocket() string { return filepath.Join(e.runDir, fmt.Sprintf("p%d.q", e.port)) }
func (e eniPlan) ourSocket() string  { return filepath.Join(e.runDir, fmt.Sprintf("p%d.o", e.port)) }

func (e eniPlan) netdev() map[string]any {
	unixAddr := func(path string) map[string]any { return map[string]any{"type": "unix", "path": path} }
	return map[string]any{"type": "dgram", "id": e.netdevID(), "local": unixAddr(e.qemuSocket()), "remote": unixAddr(e.ourSocket())}
}

func (e eniPlan) device() map[string]any {
	return map[string]any{
		"driver": "virtio-net-pci", "id": e.deviceID(), "netdev": e.netdevID(), "mac": e.mac.String(),
		"bus": portID(e.port), "romfile": "", "host_mtu": e.mtu,
	}
}

// lowestFree is the smallest number from 0 on that isn't in used, or -1 if it would reach limit.
func lowestFree(used map[int]bool, limit int) int {
	for n := range limit {
		if !used[n] {
			return n
		}
	}
	return -1
}
