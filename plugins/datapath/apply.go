package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrConflict says that a link has the name we need and is not ours to replace.
var ErrConflict = errors.New("name is taken by a link that is not ours")

// undoTime is what an undo may take beyond the deadline that may have caused it.
const undoTime = 5 * time.Second

// Apply wires the sandbox whose network namespace podNS is open on. When it fails, or the context ends, everything that
// it has made is gone again; what can't be taken away is joined to the error. The caller holds the pod's lock and, for
// a branch pod, the VLAN id's.
//
// Links of the same names that an older sandbox has left behind are replaced: their DEL has not come yet.
func Apply(ctx context.Context, p Plan, podNS int) error {
	k, err := openKernel(ctx, p.Owner, podNS)
	if err != nil {
		return err
	}
	defer k.close()
	if err := k.claim(p.HostVeth.Host, p.Owner); err != nil {
		return err
	}
	if p.VLAN != nil {
		if err := k.claim(p.VLAN.Name, p.Owner); err != nil {
			return err
		}
	}
	for i, step := range p.Steps {
		if ctx.Err() != nil {
			err := &StepError{Step: step, Err: fmt.Errorf("not begun: %w", context.Cause(ctx))}
			return errors.Join(err, k.undo(p.Steps[:i]))
		}
		if err := k.do(step); err != nil {
			// The failed step itself is undone as well: it may have been done in part.
			return errors.Join(err, k.undo(p.Steps[:i+1]))
		}
	}
	return nil
}

func (k *kernel) undo(done []Step) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	errs := []error{k.deadline(ctx)}
	for _, step := range Undo(done) {
		if err := k.do(step); err != nil {
			errs = append(errs, fmt.Errorf("undo: %w", err))
		}
	}
	return errors.Join(errs...)
}

// holder says who has a link's name.
type holder int

const (
	nobody holder = iota
	us
	leftover // of an executable that was killed between making a link and marking it; it holds our lock no more
	other
)

type observed struct {
	holder holder
	index  int
	kind   string
	mark   Mark // of us and other, if there is one
	alias  string
}

// classify decides whose a link is. Unmarked links that are up are not ours: upstream's carry no mark and are up.
func classify(attrs *netlink.LinkAttrs, kind string, owner Owner) observed {
	o := observed{holder: other, index: attrs.Index, kind: kind, alias: attrs.Alias}
	mark, err := ParseMark(attrs.Alias)
	switch {
	case err == nil && mark.Is(owner):
		o.holder, o.mark = us, mark
	case err == nil:
		o.mark = mark
	case attrs.Alias == "" && (kind == "veth" || kind == "vlan") && attrs.Flags&net.FlagUp == 0:
		o.holder = leftover
	}
	return o
}

func (k *kernel) observe(name string, owner Owner) (observed, error) {
	link, err := k.host.LinkByName(name)
	if isLinkNotFound(err) {
		return observed{}, nil
	}
	if err != nil {
		return observed{}, fmt.Errorf("look at link %s: %w", name, err)
	}
	return classify(link.Attrs(), link.Type(), owner), nil
}

// claim frees a name for the sandbox, or says why it may not.
func (k *kernel) claim(name string, owner Owner) error {
	o, err := k.observe(name, owner)
	if err != nil || o.holder == nobody {
		return err
	}
	if o.holder == other {
		switch {
		case o.mark.ContainerID == "":
			return fmt.Errorf("%w: %s %s (ifalias %q): find out who made it, and delete it if nothing uses it", ErrConflict, o.kind, name, o.alias)
		case o.mark.ContainerID == markedID(owner.ContainerID):
			return fmt.Errorf("%w: %s is this sandbox's interface %s already, a pod gets one interface from this network", ErrConflict, name, o.mark.IfName)
		}
	}
	err = k.host.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: o.index}})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("replace link %s of sandbox %s: %w", name, o.mark.Owner, err)
	}
	return nil
}
