package egress

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
)

// errNoAddress is wrapped where the node has no address left for a pod.
var errNoAddress = errors.New("no egress address left on this node")

// inStore runs f on host-local's files: its own code, without the process that running its executable would cost each
// pod. Its lock knows no deadline, so the wait for it is given up here.
func inStore(ctx context.Context, c Config, f func(*disk.Store) error) error {
	if c.DataDir == "" || c.Name == "" {
		return nil // the configuration is broken since the ADD
	}
	done := make(chan error, 1)
	go func() {
		store, err := disk.New(c.Name, c.DataDir)
		if err != nil {
			done <- fmt.Errorf("open host-local's files in %s: %w", c.DataDir, err)
			return
		}
		err = f(store)
		done <- errors.Join(err, store.Close())
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for host-local's lock in %s: %w", c.DataDir, context.Cause(ctx))
	}
}

// allocate gives the sandbox an address, the one that it has if it has one.
func allocate(ctx context.Context, c Config, o Owner) (a netip.Addr, err error) {
	err = inStore(ctx, c, func(s *disk.Store) error {
		if a, err = held(s, c, o); err != nil || a.IsValid() {
			return err
		}
		set := allocator.RangeSet{allocator.Range{Subnet: types.IPNet(net.IPNet{
			IP: c.Subnet.Addr().AsSlice(), Mask: net.CIDRMask(c.Subnet.Bits(), c.Subnet.Addr().BitLen()),
		})}}
		if err := set.Canonicalize(); err != nil {
			return fmt.Errorf("use subnet %s: %w", c.Subnet, err)
		}
		got, err := allocator.NewIPAllocator(&set, s, 0).Get(o.ContainerID, o.IfName, nil)
		if err != nil {
			return fmt.Errorf("%w (subnet %s, files in %s): %w", errNoAddress, c.Subnet, c.DataDir, err)
		}
		a = addrOf(got.Address.IP)
		return nil
	})
	return a, err
}

func held(s *disk.Store, c Config, o Owner) (netip.Addr, error) {
	if err := s.Lock(); err != nil {
		return netip.Addr{}, fmt.Errorf("lock host-local's files in %s: %w", c.DataDir, err)
	}
	defer s.Unlock()
	for _, ip := range s.GetByID(o.ContainerID, o.IfName) {
		if a := addrOf(ip); c.Subnet.Contains(a) {
			return a, nil
		}
	}
	return netip.Addr{}, nil
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// heldBy is the sandbox's address, invalid if it has none.
func heldBy(ctx context.Context, c Config, o Owner) (a netip.Addr, err error) {
	err = inStore(ctx, c, func(s *disk.Store) error {
		a, err = held(s, c, o)
		return err
	})
	return a, err
}

// release gives the sandbox's address back, if it has one.
func release(ctx context.Context, c Config, o Owner) error {
	return inStore(ctx, c, func(s *disk.Store) error { return releaseIn(s, o) })
}

func releaseIn(s *disk.Store, o Owner) error {
	if err := s.Lock(); err != nil {
		return fmt.Errorf("lock host-local's files: %w", err)
	}
	defer s.Unlock()
	if err := s.ReleaseByID(o.ContainerID, o.IfName); err != nil {
		return fmt.Errorf("give the egress address of %s/%s back: %w", o.ContainerID, o.IfName, err)
	}
	return nil
}

// collect frees the addresses of sandboxes that are not valid, and those that an executable was killed over before it
// had written whose they are.
func collect(ctx context.Context, c Config, valid func(Owner) bool) error {
	return inStore(ctx, c, func(s *disk.Store) error {
		if err := s.Lock(); err != nil {
			return fmt.Errorf("lock host-local's files in %s: %w", c.DataDir, err)
		}
		defer s.Unlock()
		dir := filepath.Join(c.DataDir, c.Name)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("list host-local's files: %w", err)
		}
		var errs []error
		for _, e := range entries {
			if _, err := netip.ParseAddr(e.Name()); err != nil {
				continue // its lock, its last address
			}
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				errs = append(errs, err)
				continue
			}
			id, ifName, _ := strings.Cut(strings.TrimSpace(string(b)), disk.LineBreak)
			if id != "" && valid(Owner{id, ifName}) {
				continue
			}
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}
