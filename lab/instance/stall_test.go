package instance

import (
	"strings"
	"testing"
)

func TestAStalledKernelIsFoundOnItsConsole(t *testing.T) {
	const rcu = "[   48.1] rcu: INFO: rcu_preempt self-detected stall on CPU\n[   48.1] RIP: 0010:native_queued_spin_lock_slowpath+0x63/0x1d0"
	for console, want := range map[string]string{
		"": "", "[    1.0] virtio_net virtio3 eth0: renamed\n": "",
		"[    1.0] a\n" + rcu + "\n": rcu,
		rcu:                          rcu,
		"[    9.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s!\n" + rcu: "[    9.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s!\n" + rcu,
	} {
		if got := stall(console); got != want {
			t.Errorf("%q: %q", console, got)
		}
	}
	if got := stall(rcu + strings.Repeat("x", 100_000)); len(got) != mostOfStall || !strings.HasPrefix(got, rcu) {
		t.Errorf("%d bytes are told", len(got))
	}
}
