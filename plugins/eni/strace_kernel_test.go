//go:build kernel

package eni

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/branchline-cni/branchline/lab/artifacts"
)

// traced is the CNI executable as it ships under strace, which harms one of its system calls.
type traced struct {
	dir string // of the wrapper that the runtime's library runs in the executable's place
	log string // a line for each system call of the traced kinds
}

// newTraced makes the wrapper. The injection is strace's: "sendto:signal=KILL:when=3". By sendto and recvfrom the
// executable talks to netlink, and to nobody else.
func newTraced(t *testing.T, inject string) traced {
	t.Helper()
	tree := artifacts.Tree{Dir: os.Getenv("BRANCHLINE_STRACE")}
	strace, err := tree.Path("strace")
	if err != nil {
		t.Fatalf("BRANCHLINE_STRACE: %v: run these tests by go run ./test/kernel ./plugins/...", err)
	}
	dir := t.TempDir()
	x := traced{dir: dir, log: filepath.Join(dir, "strace.log")}
	filter := "--seccomp-bpf" // stops at the traced calls only
	if strings.Contains(inject, "signal=") {
		filter = "" // with it strace 6.1 injects no signals
	}
	// strace counts the calls of each thread. With processors to spare Go stays on the thread: it takes none away from a
	// system call that lasts.
	script := fmt.Sprintf("#!/bin/sh\nGOMAXPROCS=16 GOGC=off GODEBUG=asyncpreemptoff=1 LD_LIBRARY_PATH=%s exec %s -f -q %s -o %s -e trace=sendto,recvfrom,exit_group -e inject=%s %s\n",
		tree.LibraryPath(), strace, filter, x.log, inject, executable(t))
	// A process that another test forks meanwhile would hold the script open for writing, and it could not be run.
	syscall.ForkLock.RLock()
	err = os.WriteFile(filepath.Join(dir, "aws-cni"), []byte(script), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// run runs verbs of a node with this executable in the place of the plain one.
func (x traced) run(n *node, verb func() error) error {
	n.t.Helper()
	plain := n.bin
	n.bin = x.dir
	defer func() { n.bin = plain }()
	err := verb()
	if _, none := os.Stat(x.log); none != nil {
		n.t.Fatalf("strace has not run: %v; the verb: %v", none, err)
	}
	return err
}

// met says where the executable was harmed.
type met struct {
	sends  []string // the threads of those that it had begun until then, the harmed one included
	harmed int      // how often: a thread that takes over from another begins to count at one
}

// count is what the n-th send is met by: its number among its thread's. Where an earlier send has the same number among
// another thread's, or the executable has not come so far, nothing is known, and it is n: what is right on one thread.
func (m met) count(n int) int {
	seen, taken := map[string]int{}, map[int]bool{}
	for i, thread := range m.sends {
		seen[thread]++
		if i+1 == n && !taken[seen[thread]] {
			return seen[thread]
		}
		taken[seen[thread]] = true
	}
	return n
}

func (x traced) met(t testing.TB) (m met) {
	t.Helper()
	log, err := os.ReadFile(x.log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		thread, _, _ := strings.Cut(line, " ")
		send, receive := strings.Contains(line, " sendto("), strings.Contains(line, " recvfrom(")
		injected := strings.Contains(line, "(INJECTED)")
		_, result, whole := strings.Cut(line, ") = ") // not where it was killed
		if (send || receive) && whole && !strings.HasPrefix(result, "-1 ") && !strings.HasPrefix(result, "?") && !strings.Contains(line, "nlmsg_") {
			t.Errorf("the executable talks to something else than netlink by these calls: %s", line)
		}
		if m.harmed == 0 && send {
			m.sends = append(m.sends, thread)
		}
		if injected || m.harmed == 0 && strings.Contains(line, "+++ killed by SIGKILL") {
			m.harmed++
		}
	}
	if bytes.Contains(log, []byte("SIGSEGV")) {
		t.Fatalf("the executable has broken down:\n%s", log)
	}
	return m
}

// atEachSend has do run the executable with one of its sends to netlink harmed, and, where harm is its death, with one that
// comes when nothing is left to do but to end. After each, mend is called, rounds times for each send, with numbers that
// follow each other, another first one for each send; it leaves nothing. So does tidy, which is called where nothing was
// harmed, or something that was before.
//
// strace counts the calls of each thread, and Go may move to another one between two calls: where the executable was
// harmed is what strace's log says, and what is still missing is tried again, as the threads of the last run suggest.
func atEachSend(t *testing.T, harm string, rounds int, do func(traced), mend func(i int, when string), tidy func(when string)) {
	t.Helper()
	plain := newTraced(t, "sendto:"+harm+":when=9999")
	do(plain)
	tidy("not harmed")
	whole := plain.met(t)
	sends := len(whole.sends)
	if sends == 0 || whole.harmed != 0 {
		t.Fatalf("the executable makes %d sends", sends)
	}
	done := make([]int, sends+1) // by the send, counted from 1
	tries := 0
	for at := 1; at <= sends; at++ {
		for count := whole.count(at); done[at] < rounds; {
			if tries++; tries > 10*rounds*sends {
				t.Fatalf("send %d of %d is not met in %d tries: %v", at, sends, tries, done)
			}
			x := newTraced(t, fmt.Sprintf("sendto:%s:when=%d", harm, count))
			do(x)
			last := x.met(t)
			n := len(last.sends)
			what := fmt.Sprintf("%s at send %d of %d", harm, n, sends)
			if last.harmed == 1 && n <= sends && done[n] < rounds {
				mend(n+done[n], what)
				done[n]++
			} else {
				tidy(what)
			}
			count = last.count(at)
		}
	}
	if strings.HasPrefix(harm, "signal=") {
		for i := range rounds {
			x := newTraced(t, "exit_group:"+harm)
			do(x)
			if x.met(t).harmed != 1 {
				t.Fatal("the executable was not harmed at its end")
			}
			mend(sends+1+i, harm+" at the end")
		}
	}
	t.Logf("%s at each of %d sends, %d times each, in %d tries", harm, sends, rounds, tries)
}
