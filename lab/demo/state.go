package demo

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/branchline-cni/branchline/lab"
	"github.com/branchline-cni/branchline/lab/demo/endstate"
)

// expected are the states that every walk-through ends in. A run with kills and one without are compared with the same
// text, and so with each other. After a wanted change copy the new text from the evidence folder.
//
//go:embed testdata/end-state.txt testdata/after-state.txt
var expected embed.FS

// settled is how long the state may take to become the expected one: pods of the last rollout end, leases are renewed.
const settled = 90 * time.Second

func (w *walk) endState(ctx context.Context) error {
	return w.sameState(ctx, "end-state.txt", "EC2, API server and nodes are in the expected end state", w.node, w.small)
}

func (w *walk) afterState(ctx context.Context) error {
	return w.sameState(ctx, "after-state.txt", "EC2, API server and the other node are in the expected state without the instance", w.small)
}

// sameState asks programs what is there until that is what was expected, and keeps what they said last.
func (w *walk) sameState(ctx context.Context, name, claim string, hosts ...lab.Machine) error {
	want, err := expected.ReadFile("testdata/" + name)
	if err != nil {
		return fmt.Errorf("read the expected state: %w", err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, settled, fmt.Errorf("not so within %s", settled))
	defer cancel()
	for {
		said, text, err := w.state(ctx, hosts)
		diff := ""
		if err == nil {
			diff = endstate.Diff(string(want), text)
		}
		if err == nil && diff == "" || ctx.Err() != nil {
			for _, o := range said {
				w.Note("$ %s\n     … in %s", o.Command, w.save(o))
			}
			if werr := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o644); werr != nil {
				return fmt.Errorf("keep the state: %w", werr)
			}
		}
		switch {
		case err == nil && diff == "":
			w.Seen("%s (%s)", claim, name)
			return nil
		case ctx.Err() != nil && diff == "":
			return fmt.Errorf("%q: %w: %w", claim, context.Cause(ctx), err)
		case ctx.Err() != nil:
			return fmt.Errorf("%q: %w; expected (-) and seen (+, all of it is in %s):\n%s", claim, context.Cause(ctx), filepath.Join(w.dir, name), diff)
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
	}
}

// state asks every program once. The text is empty unless all of them answered.
func (w *walk) state(ctx context.Context, hosts []lab.Machine) (said []Output, text string, err error) {
	// The last look is on the record also when it comes at the end of the time.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var errs []error
	ask := func(run Source, argv ...string) []byte {
		o, err := run(ctx, argv)
		if err == nil && o.Code != 0 {
			err = fmt.Errorf("%s: exit code %d: %s", o.Command, o.Code, o.All())
		}
		said, errs = append(said, o), append(errs, err)
		return []byte(o.Stdout)
	}
	describe := func(what string) []byte { return ask(w.Local, "aws", "ec2", "describe-"+what, "--output", "json") }
	in := endstate.Outputs{
		Instances: describe("instances"), Interfaces: describe("network-interfaces"), Groups: describe("security-groups"),
		Rules: describe("security-group-rules"), Associations: describe("trunk-interface-associations"),
		Permissions: describe("network-interface-permissions"),
		Objects: ask(w.Local, "kubectl", "get", "-A", "-o", "json",
			"nodes,cninodes,branchledgers,securitygrouppolicies,pods,leases,events"),
	}
	for _, m := range hosts {
		inside := w.inside(m)
		in.Hosts = append(in.Hosts, endstate.Host{
			Name: m.Name, Links: ask(inside, "ip", "-j", "-d", "link"), Rules: ask(inside, "ip", "-4", "-j", "rule"),
			// IPv4 alone: what there is of IPv6 the kernel makes by itself, from random MAC addresses.
			Routes: ask(inside, "ip", "-4", "-j", "route", "show", "table", "all"), Neighbours: ask(inside, "ip", "-4", "-j", "neigh", "show", "nud", "permanent"),
			Files: ask(inside, "find", "/var/run/aws-node/", "/etc/cni/net.d", "/opt/cni/bin", "-printf", `%y %m %u %p\n`),
		})
	}
	if err := errors.Join(errs...); err != nil {
		return said, "", err
	}
	text, err = endstate.Text(in)
	return said, text, err
}
