package eni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// earlyDemux are the settings that follow the agent's word. It is about TCP, for whose sake users know them, but UDP's goes
// with it: with either on, a strict pod's answer to a socket of its node is lost.
var earlyDemux = []string{"/proc/sys/net/ipv4/tcp_early_demux", "/proc/sys/net/ipv4/udp_early_demux"}

// setHost writes what the agent wants of the node. Two executables may hold words of the agent that contradict each
// other, the end of the last strict pod and the beginning of the next; the newer must win. So the word that takes
// something away, which comes with Del, is asked for and acted on under the lock (see tell), and the one that an Add
// brings is acted on under it: its pod was known to the agent before.
func (o *operation) setHost(ctx context.Context, lock *datapath.Lock, h *rpc.HostSettings) error {
	if h == nil || h.TcpEarlyDemux == nil {
		return nil
	}
	release, err := lock.Host(ctx)
	if err != nil {
		return err
	}
	defer release()
	return o.writeHost(h)
}

func (o *operation) writeHost(h *rpc.HostSettings) error {
	if h == nil || h.TcpEarlyDemux == nil {
		return nil
	}
	want := []byte("0")
	if h.GetTcpEarlyDemux() {
		want = []byte("1")
	}
	var errs []error
	for _, setting := range earlyDemux {
		if now, err := os.ReadFile(setting); err == nil && bytes.Equal(bytes.TrimSpace(now), want) {
			continue
		}
		if err := os.WriteFile(setting, want, 0); err != nil {
			errs = append(errs, fmt.Errorf("set %s to %s, as the node agent asks: %w", filepath.Base(setting), want, err))
			continue
		}
		o.note(filepath.Base(setting), string(want))
	}
	return errors.Join(errs...)
}

// restoreHost is writeHost for what is over: nobody waits for it, and a kernel without the setting needs none.
func (o *operation) restoreHost(h *rpc.HostSettings) {
	if err := o.writeHost(h); err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.note("hostSettings", err.Error())
	}
}
