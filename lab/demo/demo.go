package demo

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// Options of the walk-through.
type Options struct {
	// EvidenceDir keeps the evidence. It is made if need be.
	EvidenceDir string
	// StateDir is the lab's; empty: a temporary folder that is removed in the end.
	StateDir string
	// Kills has the agent, the controller and the API server killed once in each of steps 5, 7 and 8, at moments
	// drawn from Seed.
	Kills bool
	Seed  uint64
	Out   io.Writer
	Log   *slog.Logger
}

// walk is one walk-through under way.
type walk struct {
	*Evidence
	lab   *lab.Lab
	opt   Options
	rand  *rand.Rand
	began time.Time

	podGroup, rdsGroup string // POD_SG and RDS_SG
	modesGroup         string // MODES_SG
	db                 lab.Machine
	small              lab.Machine // the t3.medium
	node               lab.Machine // the m5.large

	green, red podInfo
	trunk      string // ENI id
}

// podInfo is what the walk-through remembers of a pod that it has seen.
type podInfo struct {
	name, ip, uid, node string
	eniID, mac          string
	vlanID              int
}

// step is one of the walk-through's. Kills fall into the time of that length after its start; 0: into others.
type step struct {
	name, title string
	run         func(*walk, context.Context) error
	kills       time.Duration
}

var steps = []step{
	{"1", "a cluster in a VPC: one m5.large, one t3.medium", (*walk).cluster, 0},
	{"2", "security groups for the pods and the database", (*walk).groups, 0},
	{"3", "a PostgreSQL server with RDS_SG, outside the cluster", (*walk).database, 0},
	{"4", "the controller's role needs AmazonEKSVPCResourceController", (*walk).role, 0},
	{"5", "ENABLE_POD_ENI=true: a trunk ENI, a label, a capacity of 9", (*walk).enable, rolloutTakes},
	{"6", "a SecurityGroupPolicy for app: green-pod", (*walk).policy, 0},
	{"6b", "strict and standard pods side by side: whose security groups apply to what", (*walk).modes, 0},
	{"7", "green reaches the database through its own security group, red is refused", (*walk).pods, podsTake},
	{"7b", "counter-proofs: the same packets with other rules", (*walk).counterProofs, 0},
	{"7c", "nine branch pods on an m5.large, the tenth waits and is told why", (*walk).tenth, 0},
	{"8", "clean-up: nothing leaks in EC2 or on the node", (*walk).cleanUp, cleanUpTakes},
	{"8a", "the end state is the expected one, with or without kills", (*walk).endState, 0},
	{"8b", "the instance is terminated: nothing of it is left", (*walk).terminate, 0},
	{"8c", "what is left after the termination is the expected state", (*walk).afterState, 0},
}

// Run plays the walk-through in a lab of its own. It returns nil only if every claim of every step was seen.
func Run(ctx context.Context, o Options) (err error) {
	began := time.Now()
	if o.StateDir == "" {
		if o.StateDir, err = os.MkdirTemp("/var/tmp", "branchline-demo-"); err != nil {
			return fmt.Errorf("make a folder for the lab's state: %w", err)
		}
		defer os.RemoveAll(o.StateDir)
	}
	fmt.Fprintf(o.Out, "The walk-through: real Kubernetes, containerd, PostgreSQL and kernel; EC2 and the VPC by the lab.\n"+
		"It takes 8 to 15 minutes on 2 cores (and 10 to 20 more once, until Kubernetes is in the cache).\nEvidence: %s\n", o.EvidenceDir)
	l, err := lab.Up(ctx, lab.Options{Dir: o.StateDir, Log: o.Log, Progress: o.Out, EvidenceDir: o.EvidenceDir})
	if err != nil {
		return err
	}
	defer func() {
		if kerr := l.KeepLogs(filepath.Join(o.EvidenceDir, "logs")); kerr != nil {
			fmt.Fprintf(o.Out, "   keeping the logs: %v\n", kerr)
		}
		dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		if derr := l.Down(dctx); derr != nil && err == nil {
			err = fmt.Errorf("take the lab down: %w", derr)
		}
	}()
	ev, err := NewEvidence(o.EvidenceDir, o.Out, l.BinDir()+":/usr/sbin:/usr/bin:/sbin:/bin")
	if err != nil {
		return err
	}
	ev.changes = l.Changes
	w := &walk{Evidence: ev, lab: l, opt: o, rand: rand.New(rand.NewPCG(o.Seed, 0)), began: began}
	w.node, w.small = l.Node, l.SmallNode
	for _, s := range steps {
		at := time.Now()
		w.Step(s.name, s.title)
		finish := func() error { return nil }
		if s.kills > 0 && o.Kills {
			finish = w.scheduleKills(ctx, s.kills)
		}
		if err := s.run(w, ctx); err != nil {
			_ = finish()
			w.diagnose(context.WithoutCancel(ctx))
			return fmt.Errorf("step %s (%s): %w", s.name, s.title, err)
		}
		if err := finish(); err != nil {
			return fmt.Errorf("step %s (%s): %w", s.name, s.title, err)
		}
		w.Note("step %s took %.0f s", s.name, time.Since(at).Seconds())
	}
	fmt.Fprintf(o.Out, "\nAll %d claims were seen, in %.1f minutes. Evidence: %s\n", w.Count(), time.Since(began).Minutes(), o.EvidenceDir)
	return nil
}

// nodeLogs saves the logs of agent and executable from both nodes. An instance that is gone has none.
func (w *walk) nodeLogs(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, m := range []lab.Machine{w.node, w.small} {
		for _, name := range []string{"ipamd.log", "plugin.log"} {
			o, err := w.inside(m)(ctx, []string{"cat", "/var/log/aws-routed-eni/" + name})
			if err == nil && o.Code == 0 {
				err = os.WriteFile(filepath.Join(w.dir, m.Name+"-"+name), []byte(o.Stdout), 0o644)
			}
			if err != nil {
				w.Note("%s of %s is not kept: %v", name, m.Name, err)
			}
		}
	}
}

// diagnose keeps what somebody would ask for first after a failure.
func (w *walk) diagnose(ctx context.Context) {
	w.nodeLogs(ctx)
	w.Note("the claim was not seen; what the cluster says:")
	for _, argv := range [][]string{
		{"kubectl", "get", "nodes,pods", "-A", "-o", "wide"},
		{"kubectl", "get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"kubectl", "get", "branchledgers,cninodes,securitygrouppolicies", "-A", "-o", "yaml"},
		{"aws", "ec2", "describe-network-interfaces", "--output", "json"},
	} {
		if _, err := w.Do(ctx, w.Local, argv...); err != nil {
			w.Note("%v", err)
		}
	}
}
