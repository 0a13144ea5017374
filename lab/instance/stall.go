package instance

import (
	"os"
	"strings"
)

// mostOfStall is how much of a console is told: the kernel's report has registers and a call trace of each CPU.
const mostOfStall = 6000

// stall is what a guest's kernel has on its console about a CPU of its that hangs (RCU's stall detector, the soft-lockup
// watchdog), from the first such line on; empty where there is none.
func stall(console string) string {
	at := -1
	for _, sign := range []string{"detected stall", "soft lockup"} {
		if i := strings.Index(console, sign); i >= 0 && (at < 0 || i < at) {
			at = i
		}
	}
	if at < 0 {
		return ""
	}
	at = strings.LastIndexByte(console[:at], '\n') + 1
	return strings.TrimSpace(console[at:min(len(console), at+mostOfStall)])
}

// sayStall tells that the VM's kernel hung: whoever looks for why a node did not do its work need look no further.
func (v *vm) sayStall() {
	b, err := os.ReadFile(v.plan.consoleLogFile)
	if err != nil {
		return // it never ran
	}
	if s := stall(string(b)); s != "" {
		v.spec.Log.Error("the kernel of the VM stalled", "console", s)
	}
}
