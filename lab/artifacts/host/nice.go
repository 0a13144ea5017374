package host

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// GiveWay has a process that leads a session and a group give way more than this process does: its nice value (nice(1)) is this
// one's and more, at most 19. Where the kernel groups processes by session (sched_autogroup_enabled), that counts only within
// the group, so the group's is set too. That it has not worked is no reason to fail: it is a matter of minutes.
func GiveWay(leader, more int) {
	own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		return
	}
	nice := min(20-own+more, 19) // the kernel tells 20 minus the nice value
	_ = syscall.Setpriority(syscall.PRIO_PGRP, leader, nice)
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", leader), []byte(strconv.Itoa(nice)), 0) // no such file: no such groups
}
