package instance

import (
	"bytes"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/vpc"
)

func TestQEMUIsToldAboutEveryPart(t *testing.T) {
	p := vmPlan{name: "i-1", memoryMiB: 3000, cpus: 2, ports: 15, image: "/k/vmlinuz", initramfs: "/r/initramfs", runDir: "/r", consoleLogFile: "/s/logs/console.log"}
	args := p.args()
	all := strings.Join(args, " ")
	for _, want := range []string{
		"size=3000M,share=on", "-m 3000M", "-smp 2", "-kernel /k/vmlinuz", "-initrd /r/initramfs", "path=/r/root.sock", "path=/r/state.sock",
		"tag=root", "tag=state", "fd=3", "fd=4", "-serial file:/s/logs/console.log", "-no-reboot", "id=rp14,chassis=15",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
	p.hugeMemory = true
	if huge := strings.Join(p.args(), " "); !strings.Contains(all, "memory-backend-memfd,") || !strings.Contains(huge, "memory-backend-file,mem-path=/proc/self/fd/5,") {
		t.Errorf("the memory is not QEMU's own, or not the file with huge pages: %s, %s", all, huge)
	}
	if n := strings.Count(all, "pcie-root-port"); n != 15 {
		t.Errorf("%d root ports, want 15", n)
	}
}

func TestENISocketsFitAndAreToldToQEMUTheOtherWayRound(t *testing.T) {
	e := eniPlan{eniID: "eni-0d8a3a3a7f2eb57ab", mac: net.HardwareAddr{6, 0x20, 0xd, 0x3c, 0x5f, 0xbc}, port: 14, mtu: 9001, runDir: "/tmp/blvm-1234567890"}
	local := e.netdev()["local"].(map[string]any)["path"].(string)
	remote := e.netdev()["remote"].(map[string]any)["path"].(string)
	if local != e.qemuSocket() || remote != e.ourSocket() || local == remote {
		t.Errorf("local %s, remote %s", local, remote)
	}
	if len(local) > 107 {
		t.Errorf("%s is too long for a unix socket", local)
	}
	d := e.device()
	if d["mac"] != "06:20:0d:3c:5f:bc" || d["bus"] != "rp14" || d["host_mtu"] != 9001 || d["netdev"] != e.netdevID() {
		t.Errorf("device: %v", d)
	}
}

func TestPortsAreGivenLowestFirstAndNeverTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 4
		used := map[int]bool{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			if len(used) > 0 && rapid.Bool().Draw(t, "free") {
				delete(used, rapid.SampledFrom(slices.Sorted(func(yield func(int) bool) {
					for k := range used {
						if !yield(k) {
							return
						}
					}
				})).Draw(t, "which"))
				continue
			}
			n := lowestFree(used, limit)
			if (n < 0) != (len(used) == limit) {
				t.Fatalf("%d with %v used", n, used)
			}
			if n < 0 {
				continue
			}
			for lower := range n {
				if !used[lower] {
					t.Fatalf("%d given while %d is free", n, lower)
				}
			}
			if used[n] {
				t.Fatalf("%d given twice", n)
			}
			used[n] = true
		}
	})
}

const modulesDep = `kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/drivers/virtio/virtio.ko
kernel/fs/fuse/fuse.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio-ring.ko.xz
kernel/drivers/virtio/virtio-ring.ko.xz:
`

func TestModulesAreLoadedAfterWhatTheyNeed(t *testing.T) {
	got, err := moduleOrder(modulesDep, "kernel/fs/overlay.ko\n", []string{"virtio", "virtiofs", "overlay", "virtio_ring"})
	want := []string{"kernel/drivers/virtio/virtio-ring.ko.xz", "kernel/drivers/virtio/virtio.ko", "kernel/fs/fuse/fuse.ko", "kernel/fs/fuse/virtiofs.ko"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := moduleOrder(modulesDep, "", []string{"8021q"}); err == nil || !strings.Contains(err.Error(), "8021q") {
		t.Errorf("missing module: %v", err)
	}
	if _, err := moduleOrder("a.ko: b.ko\nb.ko: a.ko\n", "", []string{"a"}); err == nil {
		t.Error("a circle was accepted")
	}
}

func FuzzModuleOrder(f *testing.F) {
	f.Add(modulesDep, "x.ko")
	f.Fuzz(func(t *testing.T, dep, builtin string) { moduleOrder(dep, builtin, bootModules) })
}

func FuzzParseQMP(f *testing.F) {
	f.Add([]byte(`{"event":"DEVICE_DELETED","data":{"device":"dev-eni-1"},"timestamp":{}}`))
	f.Add([]byte(`{"QMP":{"version":{}}}`))
	f.Add([]byte(`{"id":1,"error":{"class":"GenericError","desc":"x"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseQMP(b); err == nil {
			deviceDeleted("dev-eni-1")(m.Event, m.Data)
		}
	})
}

func TestArchiveIsWhatTheKernelUnpacks(t *testing.T) {
	var b bytes.Buffer
	a := newArchive(&b)
	a.dir("dev")
	a.entry("dev/console", modeChar, 5, 1, nil)
	a.file("init", []byte("12345"))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	type entry struct{ name, mode, content string }
	var got []entry
	for r := b.Bytes(); len(r) > 0; {
		if string(r[:6]) != "070701" {
			t.Fatalf("no header at %q", r[:6])
		}
		field := func(n int) int {
			v, err := hex.DecodeString(string(r[6+8*n : 14+8*n]))
			if err != nil {
				t.Fatal(err)
			}
			return int(v[0])<<24 | int(v[1])<<16 | int(v[2])<<8 | int(v[3])
		}
		size, nameLen := field(6), field(11)
		body := (110 + nameLen + 3) &^ 3
		got = append(got, entry{string(r[110 : 110+nameLen-1]), string(r[14:22]), string(r[body : body+size])})
		r = r[(body+size+3)&^3:]
	}
	want := []entry{{"dev", "000041ed", ""}, {"dev/console", "00002180", ""}, {"init", "000081ed", "12345"}, {"TRAILER!!!", "00000000", ""}}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCgroupHierarchiesAreFound(t *testing.T) {
	got := cgroupMounts("24 22 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n25 22 0:23 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 cgroup2 rw\n26 1 8:1 / / rw - ext4 x rw\nbroken\n")
	if v2, ok := got["/sys/fs/cgroup/unified"]; len(got) != 2 || !ok || !v2 || got["/sys/fs/cgroup/cpu"] {
		t.Errorf("got %v", got)
	}
}

func TestSpecIsCheckedBeforeAnythingIsMade(t *testing.T) {
	good := Spec{ID: "i-0123456789abcdef0", Agent: "/agent", StateDir: t.TempDir()}
	if _, err := good.prepared(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"id with a path":        func(s *Spec) { s.ID = "../x" },
		"no agent":              func(s *Spec) { s.Agent = "" },
		"relative state folder": func(s *Spec) { s.StateDir = "state" },
		"root as state folder":  func(s *Spec) { s.StateDir = "/" },
		"more slots than fit":   func(s *Spec) { s.MaxENIs = 16 },
	} {
		s := good
		change(&s)
		if _, err := s.prepared(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestPrimaryIsConfiguredLikeEC2(t *testing.T) {
	e := ec2.AttachmentSpec{ENIID: "eni-1", MAC: net.HardwareAddr{6, 1, 2, 3, 4, 5}, Address: netip.MustParseAddr("192.168.47.64"), SubnetCIDR: netip.MustParsePrefix("192.168.32.0/19")}
	p := Spec{DNS: netip.MustParseAddr("192.168.0.2")}.primaryConfig(e)
	if p.Hostname != "ip-192-168-47-64" || p.Gateway.String() != "192.168.32.1" || p.Address.String() != "192.168.47.64/19" || p.DNS.String() != "192.168.0.2" {
		t.Errorf("%+v", p)
	}
	if p.IPv6.IsValid() || p.GatewayIPv6.IsValid() {
		t.Errorf("without an IPv6 address: %+v", p)
	}
	e.IPv6 = netip.MustParseAddr("2600:1f14::4")
	if p := (Spec{}).primaryConfig(e); p.IPv6 != e.IPv6 || p.GatewayIPv6 != vpc.RouterIPv6 {
		t.Errorf("with an IPv6 address: %+v", p)
	}
	e.Address = netip.MustParseAddr("10.0.0.1")
	if err := checkAttachment(e); err == nil {
		t.Error("an address outside the subnet was accepted")
	}
}
