package ec2

import (
	"context"
	"crypto/sha256"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/lab/vpc"
)

// Config of a region. The zero value is us-west-2 of account 111122223333 with AWS's default request limits, in which
// instances run without being real.
type Config struct {
	Region    string // default us-west-2
	AccountID string // default 111122223333
	// Now is the region's clock. nil: time.Now. Clients whose clock differs by more than five minutes are refused.
	Now func() time.Time
	// OnChange gets the data plane's view after each change. It is called with the region's lock held, in the order of
	// the changes: it has to be quick and must not call back.
	OnChange func(*vpc.Topology)
	// Instances makes instances and attachments real. nil: every step succeeds at once.
	Instances Instances
	Log       *slog.Logger // nil: none
	// Audit gets one JSON line per call, in the manner of CloudTrail. nil: none.
	Audit io.Writer
	// Limits on requests and resources. nil: DefaultLimits.
	Limits *Limits
	// Latency is how long a call of an API takes. nil: no time.
	Latency func(api string) time.Duration
	// MetadataDelay is the time between an ENI's attachment and its showing in the instance's metadata.
	MetadataDelay time.Duration
	// History is how far back descriptions (Fault.Late) and metadata (LateMetadata) can be. Zero: they are never late.
	History time.Duration
	// CredentialLife is the life of a role's keys. Zero: 6 hours, as AWS.
	CredentialLife time.Duration
	// Seed makes ids and MACs reproducible: the same calls in the same order give the same ones.
	Seed string
}

// Region holds the state. All methods may be called at the same time.
type Region struct {
	cfg    Config
	ctx    context.Context // ends the work of the background
	cancel context.CancelFunc
	work   sync.WaitGroup
	faults *Faults

	mu        sync.Mutex
	random    *rand.Rand
	used      map[string]bool // ids that were ever given
	vpcs      map[string]*vpcState
	subnets   map[string]*subnet
	groups    map[string]*group
	enis      map[string]*eni
	instances map[string]*instance
	grants    map[string]*permission
	tags      map[string]map[string]string // resource id -> key -> value
	tokens    map[string]idempotent
	iam       iamState
	buckets   map[string]*bucket
	steps     []func() // what the current call asks of the driver
	past      []moment // the last one is now
	late      map[lateness]time.Duration
	shown     map[lateness]time.Time
	auditMu   sync.Mutex
}

// New makes an empty region.
func New(cfg Config) *Region {
	if cfg.Region == "" {
		cfg.Region = "us-west-2"
	}
	if cfg.AccountID == "" {
		cfg.AccountID = "111122223333"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Limits == nil {
		l := DefaultLimits()
		cfg.Limits = &l
	}
	if cfg.CredentialLife == 0 {
		cfg.CredentialLife = 6 * time.Hour
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &Region{
		cfg: cfg, ctx: ctx, cancel: cancel, faults: &Faults{now: cfg.Now},
		random:    rand.New(rand.NewChaCha8(sha256.Sum256([]byte("branchline lab " + cfg.Seed)))),
		used:      make(map[string]bool),
		vpcs:      make(map[string]*vpcState),
		subnets:   make(map[string]*subnet),
		groups:    make(map[string]*group),
		enis:      make(map[string]*eni),
		instances: make(map[string]*instance),
		grants:    make(map[string]*permission),
		tags:      make(map[string]map[string]string),
		tokens:    make(map[string]idempotent),
		buckets:   make(map[string]*bucket),
		late:      make(map[lateness]time.Duration),
		shown:     make(map[lateness]time.Time),
	}
	r.iam.init(r)
	return r
}

// Faults scripts failures.
func (r *Region) Faults() *Faults { return r.faults }

// Close ends what runs in the background (launches, hot-plugs) and waits for it. The handler still answers.
func (r *Region) Close() {
	r.cancel()
	r.work.Wait()
}
