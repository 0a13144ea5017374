package enis

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/vishvananda/netlink"
)

// A subscription's sender that waits for room when nobody reads any more would stay for ever, and its socket's buffer with it.
func TestAnEndedWatchLeavesNoSenderBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // which fails where a goroutine is left
		ctx, cancel := context.WithCancel(t.Context())
		subscriptions, seen := 0, 0
		watch(ctx, func(events chan<- netlink.LinkUpdate, done <-chan struct{}) error {
			if subscriptions++; subscriptions == 1 {
				return errors.New("no buffer space available")
			}
			go func() {
				defer close(events)
				for n := 0; ; n++ {
					select {
					case <-done:
						// What was received with the last message is sent yet, whether anybody reads or not.
						for range 200 {
							events <- netlink.LinkUpdate{}
						}
						return
					default:
					}
					l := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "ens6", HardwareAddr: []byte{6, 0, 0, 0, 0, 1}}}
					events <- netlink.LinkUpdate{Link: l}
				}
			}()
			return nil
		}, func() {
			if seen++; seen == 100 {
				cancel()
			}
		}, func() {})
		if subscriptions != 2 || seen < 100 {
			t.Errorf("%d subscriptions, %d events", subscriptions, seen)
		}
	})
}
