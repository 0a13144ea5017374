package ipamd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials/insecure"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/kube/kubetest"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/test/truth"
)

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
}

// provider is one instance's EC2 and IMDS: the plain maps of test/truth, or the lab's.
type provider interface {
	// reach gives one agent its IMDS and its EC2. Once its hands are dead neither has an effect.
	reach(h *hands) (enis.Metadata, EC2)
	identity() aws.Identity
	// enis are the instance's and those of nobody, as the VPC has them at this moment.
	enis() map[string]truth.ENI
	// lateMetadata has IMDS show an ENI as it was so long ago, lateDescribes EC2 all of them.
	lateMetadata(eni string, by time.Duration)
	lateDescribes(by time.Duration)
	fail(f flaw)
	outsider
	// calm ends all of that.
	calm()
}

// outsider is somebody else who works on the instance's ENIs.
type outsider interface {
	bring() error
	take(eni string) error
	assign(eni string) error
	unassign(eni string, unit netip.Prefix) error // an address, or an IPv6 prefix
}

// flaw is what happens to the next calls of an API. IMDS is one.
type flaw struct {
	api   string
	kind  flawKind
	code  string // of refused
	times int
}

type flawKind int

const (
	refused  flawKind = iota // without an effect
	lost                     // the answer, not the effect
	repeated                 // the call takes effect twice
)

// stage is an instance with its pods. It survives its agents, and reboots. It belongs into a synctest bubble.
type stage struct {
	t     failer
	cloud provider
	told  *truth.Sandboxes
	// cluster is the API server as everybody else reaches it, api as this node does.
	cluster, api client.WithWatch
	dir          string
	env          map[string]string
	log          io.Writer

	mu        sync.Mutex
	files     map[string][]byte
	disk      error // what writing answers with
	wired     map[netip.Addr]bool
	numbers   map[string]int // link index by ENI
	up        map[string]bool
	wrong     []error
	agent     *actor
	sandboxes map[string]*sandbox // the last one of each pod
	uids      map[string]string
	requests  sync.WaitGroup
	made      int
	failures  int // writes that the disk did not take
	outside   apiServer
	netlink   struct {
		fails int         // so many questions to the kernel
		seen  []enis.Link // what it shows of links
		until time.Time   // to this moment
	}
}

// sandbox of a pod; guarded by the stage.
type sandbox struct {
	id, pod, uid string
	busy         bool // a request of it is under way
	live         bool // answered and wired
	over         bool
	lost         bool // with its machine
	forgotten    bool // the agent's memory was lost since
	heard        bool // the agent was told of its end
	number       int  // of all sandboxes
	agents       int  // that were asked; the one who asks has it
	err          error
	grants       []truth.Grant // the first network card's first
}

func (b *sandbox) addresses() (out []netip.Addr) {
	for _, g := range b.grants {
		out = append(out, g.Address)
	}
	return out
}

// interfaceOf names one of a sandbox's interfaces.
func (b *sandbox) interfaceOf(n int) string { return fmt.Sprintf("%s/%d", b.id, n) }

// actor is a running agent.
type actor struct {
	service
	h      *hands
	cancel context.CancelFunc
	done   chan error
}

func newStage(t failer, dir string, cloud func(*stage) provider) *stage {
	s := &stage{
		t: t, dir: dir, files: map[string][]byte{}, wired: map[netip.Addr]bool{}, numbers: map[string]int{}, up: map[string]bool{},
		sandboxes: map[string]*sandbox{}, uids: map[string]string{},
		env: map[string]string{
			"MY_NODE_NAME": nodeName, "ENABLE_SUBNET_DISCOVERY": "false", "DISABLE_INTROSPECTION": "true", "HOST_CNI_CONFDIR_PATH": dir,
			"AWS_VPC_K8S_CNI_BACKING_STORE": filepath.Join(dir, "ipam.json"),
		},
	}
	s.cloud = cloud(s)
	for _, e := range s.cloud.enis() {
		s.up[e.ID] = e.Device == 0
	}
	s.told = &truth.Sandboxes{Believed: s.cloud.enis, Now: time.Now, CoolDown: 30 * time.Second}
	s.cluster, s.api = s.newAPI()
	return s
}

// boot starts an agent, which may be killed while it starts.
func (s *stage) boot() {
	s.t.Helper()
	c, _, err := config.Load(func(k string) (string, bool) { v, ok := s.env[k]; return v, ok })
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	log := slog.New(slog.DiscardHandler)
	if s.log != nil {
		log = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	id := s.cloud.identity()
	k, err := kube.New(kube.Options{API: kubetest.API(s.api), NodeName: nodeName, InstanceID: id.InstanceID, Policies: c.PodENI, Log: log, Resync: 24 * time.Hour})
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	h := newHands(s)
	metadata, ec2 := s.cloud.reach(h)
	typ, _ := aws.LookupInstanceType(id.InstanceType)
	if s.env["ENABLE_MULTI_NIC"] != "" { // on or off, this instance has two network cards
		typ.MaxInterfaces, typ.InterfacesPerNetworkCard = truth.MaxENIs+truth.MaxOnSecond, []int{truth.MaxENIs, truth.MaxOnSecond}
	}
	a, err := New(Options{
		Config: c, Identity: id, Type: typ, Kube: k, Metadata: metadata, EC2: ec2, Links: h, Routing: routingOf{h}, StatePath: "/state", disk: h,
		Listener: &deaf{done: make(chan struct{})}, Credentials: insecure.NewCredentials(), Metrics: prometheus.NewRegistry(), Version: "test", Log: log, Now: time.Now,
	})
	if h.dead() {
		return
	}
	if errors.Is(err, store.ErrNotWritten) {
		s.setDisk(nil) // a first start needs it; somebody frees it then
		return
	}
	if errors.Is(err, syscall.EINTR) {
		return // it ends, and the kubelet starts it again
	}
	if err != nil {
		s.t.Fatalf("the agent does not start: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	actor := &actor{service: service{a: a}, h: h, cancel: cancel, done: make(chan error, 1)}
	go func() { actor.done <- a.Run(ctx) }()
	s.mu.Lock()
	s.agent = actor
	s.mu.Unlock()
}

// setDisk sets what writing answers with.
func (s *stage) setDisk(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.disk = err
}

// kill ends the agent: from now on nothing that it does has an effect.
func (s *stage) kill() {
	s.t.Helper()
	s.mu.Lock()
	a := s.agent
	s.agent = nil
	s.mu.Unlock()
	if a == nil {
		return
	}
	a.h.die()
	a.cancel()
	if err := <-a.done; err != nil {
		s.t.Fatalf("the agent ended with %v", err)
	}
}

// over ends the agent and all that it has begun: nothing outlives the bubble.
func (s *stage) over() {
	s.t.Helper()
	s.kill()
	s.requests.Wait()
	time.Sleep(time.Minute) // the SDK fetches credentials on a goroutine of its own, which nobody's end ends
}

func (s *stage) running() *actor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.agent
}

// settle lets everybody do what can be done at this moment, starts an agent where none is, and looks for what is wrong.
func (s *stage) settle() {
	s.t.Helper()
	synctest.Wait()
	if a := s.running(); a == nil || a.h.dead() {
		s.kill()
		for s.running() == nil {
			s.boot()
		}
		synctest.Wait()
	}
	if err := s.check(); err != nil {
		s.t.Fatalf("%v", err)
	}
}

// pass lets time go by.
func (s *stage) pass(d time.Duration) {
	s.t.Helper()
	s.passBy(d, 10*time.Second)
}

// passBy looks for what is wrong so often meanwhile.
func (s *stage) passBy(d, every time.Duration) {
	s.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(every, time.Until(end)))
		s.settle()
	}
}

// check compares what is held with what the VPC has, and with what the agent remembers.
func (s *stage) check() error {
	s.mu.Lock()
	wrong := errors.Join(s.wrong...)
	s.mu.Unlock()
	if wrong != nil {
		return wrong
	}
	if err := s.told.Check(); err != nil {
		return err
	}
	a := s.running()
	if a == nil || a.h.dead() {
		return nil
	}
	view := a.a.store.View()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes {
		if !b.live || b.over || b.forgotten {
			continue
		}
		found := false
		for _, al := range view.Allocations {
			found = found || al.ContainerID == b.id && slices.Equal(al.Addresses(), b.addresses())
		}
		if !found && !a.h.dead() {
			return fmt.Errorf("sandbox %s holds %v, and the agent has forgotten it", b.id, b.grants)
		}
	}
	if a.h.dead() {
		return nil
	}
	return cmp.Or(s.keptWithoutAPI(view), s.watched(a))
}

func (s *stage) note(err error) {
	if err != nil {
		s.wrong = append(s.wrong, err)
	}
}

// number is an ENI's link index. Lock held.
func (s *stage) number(eni string) int {
	if s.numbers[eni] == 0 {
		s.numbers[eni] = 100 + len(s.numbers)
	}
	return s.numbers[eni]
}

// linksChanged is what the kernel says when an ENI came or went.
func (s *stage) linksChanged() {
	if a := s.running(); a != nil {
		a.h.linksChanged()
	}
}

// hands are what one agent has of its surroundings.
type hands struct {
	s    *stage
	ctx  context.Context
	end  context.CancelFunc
	mu   sync.Mutex
	cut  int // steps of the disk until it is killed; negative: never
	torn bool
	eni  func()
}

func newHands(s *stage) *hands {
	h := &hands{s: s, cut: -1}
	h.ctx, h.end = context.WithCancel(context.Background())
	return h
}

var errKilled = errors.New("the agent was killed")

func (h *hands) dead() bool { return h.ctx.Err() != nil }

func (h *hands) die() { h.end() }

// killAfter has it killed at a step of its disk, in the middle of it where torn is set.
func (h *hands) killAfter(steps int, torn bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cut, h.torn = steps, torn
}

// step of the disk.
func (h *hands) step(partly func()) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.dead() {
		return errKilled
	}
	if h.cut == 0 {
		if h.torn {
			partly()
		}
		h.die()
		return errKilled
	}
	h.cut--
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.disk != nil {
		h.s.failures++
	}
	return h.s.disk
}

func (h *hands) ReadFile(name string) ([]byte, error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	b, ok := h.s.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (h *hands) WriteSynced(name string, b []byte) error {
	write := func(b []byte) {
		h.s.mu.Lock()
		h.s.files[name] = slices.Clone(b)
		h.s.mu.Unlock()
	}
	if err := h.step(func() { write(b[:len(b)/2]) }); err != nil {
		return err
	}
	write(b)
	return nil
}

func (h *hands) Rename(from, to string) error {
	rename := func() {
		h.s.mu.Lock()
		h.s.files[to] = h.s.files[from]
		delete(h.s.files, from)
		h.s.mu.Unlock()
	}
	if err := h.step(rename); err != nil { // the rename is on disk, and nobody has heard of it
		return err
	}
	rename()
	return nil
}

func (h *hands) SyncDir(string) error { return h.step(func() {}) }

// badNetlink has the kernel refuse so many questions, as it does where a dump is interrupted, and show links as they are now for
// so long.
func (s *stage) badNetlink(fails int, late time.Duration) {
	now, _ := (&hands{s: s}).links()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.netlink.fails, s.netlink.seen, s.netlink.until = fails, now, time.Now().Add(late)
}

// asked is called with the stage's lock held.
func (s *stage) asked() error {
	if s.netlink.fails > 0 {
		s.netlink.fails--
		return syscall.EINTR
	}
	return nil
}

// List are the links of the ENIs that are attached at this moment, or were.
func (h *hands) List(context.Context) (out []enis.Link, err error) {
	h.s.mu.Lock()
	err = h.s.asked()
	late, seen := time.Now().Before(h.s.netlink.until), h.s.netlink.seen
	h.s.mu.Unlock()
	if err != nil || late {
		return slices.Clone(seen), err
	}
	return h.links()
}

func (h *hands) links() (out []enis.Link, err error) {
	all := h.s.cloud.enis()
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	for _, e := range all {
		if e.Device >= 0 {
			out = append(out, enis.Link{Index: h.s.number(e.ID), Name: e.ID, MAC: e.MAC, Up: h.s.up[e.ID]})
		}
	}
	return out, nil
}

func (h *hands) SetUp(_ context.Context, index, _ int, _ netip.Addr) error {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	for id, n := range h.s.numbers {
		if n == index && !h.dead() {
			h.s.up[id] = true
		}
	}
	return nil
}

func (h *hands) VLANs(context.Context) (map[int]bool, error) { return map[int]bool{}, nil }

func (h *hands) Marked(context.Context) (enis.Marked, error) {
	m := enis.Marked{VLANs: map[int]bool{}, Standard: map[int]bool{}, Addresses: map[netip.Addr]bool{}}
	pods, err := h.Pods()
	for _, a := range pods {
		m.Addresses[a] = true
	}
	return m, err
}

func (h *hands) linksChanged() {
	h.mu.Lock()
	eni := h.eni
	h.mu.Unlock()
	if eni != nil {
		eni()
	}
}

// Watch is of links.
func (h *hands) Watch(ctx context.Context, eni, _ func()) {
	h.mu.Lock()
	h.eni = eni
	h.mu.Unlock()
	eni()
	<-ctx.Done()
}

// routingOf is the host's routing as one agent has it.
type routingOf struct{ *hands }

func (routingOf) Watch(ctx context.Context, _ func()) { <-ctx.Done() }

func (routingOf) Reconcile(context.Context, hostnet.Desired) (hostnet.Result, error) {
	return hostnet.Result{}, nil
}

func (routingOf) Forget(context.Context, []netip.Addr) (int, error) { return 0, nil }

func (h *hands) Pods() (out []netip.Addr, err error) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if err := h.s.asked(); err != nil {
		return nil, err
	}
	for a := range h.s.wired {
		out = append(out, a)
	}
	return out, nil
}

// deaf is a listener that nobody calls.
type deaf struct {
	done chan struct{}
	once sync.Once
}

func (d *deaf) Accept() (net.Conn, error) { <-d.done; return nil, net.ErrClosed }
func (d *deaf) Close() error              { d.once.Do(func() { close(d.done) }); return nil }
func (d *deaf) Addr() net.Addr            { return &net.UnixAddr{Name: "nowhere", Net: "unix"} }
