package datapath

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// carrierMost bounds the wait for the host's ends of a pod's veths. It takes microseconds, and milliseconds on a busy node; where it
// takes longer the pod is wired all the same.
const carrierMost = 250 * time.Millisecond

// awaitCarriers waits until the host's ends of the veths send. They were up before the pod's, without a carrier, and the kernel
// activates them in its own time: what is for the pod until then is lost, the answer to its first question say. Kernels from 6.8 on
// do it when they are asked for the link.
func (k *kernel) awaitCarriers(veths []AddVeth) error {
	for _, v := range veths {
		if err := k.awaitCarrier(v); err != nil {
			return stepError(v, err)
		}
	}
	return nil
}

func (k *kernel) awaitCarrier(v AddVeth) error {
	sends := func() (bool, error) {
		r := linkRequest(k.index[Host][v.Host])
		if err := k.one(Host, r); err != nil {
			return false, fmt.Errorf("look whether it sends: %w", err)
		}
		return parseLink(r.reply).sends, nil
	}
	err := k.await(-1, unix.RTNLGRP_LINK, min(carrierMost, k.left()), sends)
	if err == context.DeadlineExceeded { // itself: a look that was not answered wraps it
		return nil
	}
	return err
}
