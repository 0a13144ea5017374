// Command peak runs a program and tells its peak memory on descriptor 3, in KiB. The benchmark can't tell by itself: a
// process's peak starts at that of whoever started it (the kernel counts it across exec), and the benchmark is larger
// than most of what it measures. So this program imports as little as it can; its own few megabytes are a floor.
//
//	peak PROGRAM ARGUMENT...
package main

import (
	"os"
	"strconv"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(argv []string) int {
	if len(argv) == 0 {
		os.Stderr.WriteString("peak: want a program to run\n")
		return 2
	}
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}})
	if err != nil {
		os.Stderr.WriteString("peak: start " + argv[0] + ": " + err.Error() + "\n")
		return 2
	}
	var status syscall.WaitStatus
	var usage syscall.Rusage
	for {
		_, err = syscall.Wait4(pid, &status, 0, &usage)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		os.Stderr.WriteString("peak: wait for " + argv[0] + ": " + err.Error() + "\n")
		return 2
	}
	if _, err := syscall.Write(3, []byte(strconv.FormatInt(usage.Maxrss, 10))); err != nil {
		os.Stderr.WriteString("peak: tell the peak: " + err.Error() + "\n")
		return 2
	}
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}
