package ipamd

import (
	"net/netip"
	"slices"
)

// mournOrphans lets addresses cool of which the routes are gone.
func (a *Agent) mournOrphans() error {
	a.mu.Lock()
	n := len(a.orphans)
	a.mu.Unlock()
	if n == 0 {
		return nil
	}
	wired, err := a.opt.Routing.Pods()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr := range a.orphans {
		if !slices.Contains(wired, addr) {
			if err := a.store.Cool(a.ownerOf(addr), addr); err != nil {
				return err
			}
			delete(a.orphans, addr)
			a.changed.Fire() // the pool waits for the end of its rest
		}
	}
	return nil
}

func (a *Agent) ownerOf(addr netip.Addr) string {
	for _, e := range a.inventory.ENIs() {
		if e.Owns(addr) {
			return e.ID
		}
	}
	return ""
}
