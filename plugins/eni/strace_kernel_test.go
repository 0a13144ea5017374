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
	script := fmt.Sprintf("#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s -f -q %s -o %s -e trace=sendto,recvfrom,exit_group -e inject=%s %s\n",
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

// met says how many sends the executable has begun until it was harmed, the harmed one included, and whether it was.
func (x traced) met(t testing.TB) (sends int, harmed bool) {
	t.Helper()
	log, err := os.ReadFile(x.log)
	if err != nil {
		t.Fatal(err)
	}
	sender, sent := "", ""
	for line := range strings.Lines(string(log)) {
		thread, call, _ := strings.Cut(line, " ")
		send, receive := strings.Contains(line, " sendto("), strings.Contains(line, " recvfrom(")
		_, result, whole := strings.Cut(line, ") = ") // not where it was killed
		if (send || receive) && whole && !strings.HasPrefix(result, "-1 ") && !strings.HasPrefix(result, "?") && !strings.Contains(line, "nlmsg_") {
			t.Errorf("the executable talks to something else than netlink by these calls: %s", line)
		}
		if send && call == sent && thread != sender {
			continue // a thread that dies with the sender: strace says the sender's call of it, with its sequence number
		}
		if send && !harmed {
			// strace counts the calls of each thread for itself.
			if sender != "" && sender != thread {
				t.Fatalf("the executable sends from two threads:\n%s", log)
			}
			sender, sent = thread, call
			sends++
		}
		harmed = harmed || strings.Contains(line, "(INJECTED)") || strings.Contains(line, "+++ killed by SIGKILL")
	}
	if bytes.Contains(log, []byte("SIGSEGV")) {
		t.Fatalf("the executable has broken down:\n%s", log)
	}
	return sends, harmed
}

// atEachSend has do run the executable with its n-th send to netlink harmed, from the first until it ends by itself, and,
// where harm is its death, with one that comes when nothing is left to do but to end. After each, mend is called, rounds
// times for each send, with numbers that follow each other, another first one for each send; it leaves nothing. So does
// tidy, which is called where nothing was harmed.
func atEachSend(t *testing.T, harm string, rounds int, do func(traced), mend func(i int, when string), tidy func(when string)) {
	t.Helper()
	const most = 100 // no verb makes as many
	for n := 1; n <= most; n++ {
		for i := range rounds {
			x := newTraced(t, fmt.Sprintf("sendto:%s:when=%d", harm, n))
			do(x)
			sends, harmed := x.met(t)
			if harmed {
				if sends != n {
					t.Fatalf("%s at send %d, not %d", harm, sends, n)
				}
				mend(n+i, fmt.Sprintf("%s at send %d", harm, n))
				continue
			}
			tidy("not harmed")
			if n == 1 || i > 0 || sends != n-1 {
				t.Fatalf("not harmed at send %d, in round %d, and made %d sends", n, i+1, sends)
			}
			t.Logf("%s at each of %d sends, %d times each", harm, sends, rounds)
			atItsEnd(t, harm, n, rounds, do, mend)
			return
		}
	}
	t.Fatalf("the executable has made %d sends and not ended", most)
}

// atItsEnd kills the executable when nothing is left to do but to end: its caller doesn't hear of what is done.
func atItsEnd(t *testing.T, harm string, first, rounds int, do func(traced), mend func(i int, when string)) {
	t.Helper()
	if !strings.HasPrefix(harm, "signal=") {
		return
	}
	for i := range rounds {
		x := newTraced(t, "exit_group:"+harm)
		do(x)
		if _, harmed := x.met(t); !harmed {
			t.Fatal("the executable was not harmed at its end")
		}
		mend(first+i, harm+" at the end")
	}
}
