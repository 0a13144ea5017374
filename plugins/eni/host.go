package eni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

const earlyDemux = "/proc/sys/net/ipv4/tcp_early_demux"

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
	if now, err := os.ReadFile(earlyDemux); err == nil && bytes.Equal(bytes.TrimSpace(now), want) {
		return nil
	}
	if err := os.WriteFile(earlyDemux, want, 0); err != nil {
		return fmt.Errorf("set tcp_early_demux to %s, as the node agent asks: %w", want, err)
	}
	o.note("tcpEarlyDemux", string(want))
	return nil
}

// restoreHost is writeHost for what is over: nobody waits for it, and a kernel without the setting needs none.
func (o *operation) restoreHost(h *rpc.HostSettings) {
	if err := o.writeHost(h); err != nil && !errors.Is(err, fs.ErrNotExist) {
		o.note("hostSettings", err.Error())
	}
}
