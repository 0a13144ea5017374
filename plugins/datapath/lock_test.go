package datapath

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

func TestLockKeepsTheSameNameApartAndOthersFree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "cni.lock")
	open := func() *Lock {
		l, err := OpenLock(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	first, second := open(), open()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(first.Pod(ctx, "shop", "web"))
	must(first.VLAN(ctx, 7))
	must(first.VLAN(ctx, 7)) // once more, by the same open file
	must(second.Pod(ctx, "shop", "other"))
	must(second.VLAN(ctx, 8))
	short, end := context.WithTimeout(ctx, 20*time.Millisecond)
	defer end()
	if err := open().Pod(short, "shop", "web"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a held lock: %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- second.VLAN(ctx, 7) }()
	must(first.Close())
	must(<-got)
}
