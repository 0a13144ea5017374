package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/instance/guest"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// Spec describes an instance. Zero values stand for what the comment says.
type Spec struct {
	// ID is the EC2 instance id (i-…); it names the instance's cgroups and processes.
	ID string
	// Type is the EC2 instance type, for the log only.
	Type string
	// Name is the host name; by default, EC2's: ip-<address of the first ENI, with dashes>.
	Name string
	// StateDir is a folder of the machine that the instance sees at the same path, writable. Logs are in StateDir/logs.
	StateDir string
	// Agent is the guest agent's executable (Agent builds it).
	Agent string
	// DNS is the VPC's name server (the VPC's base + 2); by default that of 192.168.0.0/16.
	DNS netip.Addr
	// SearchDomain goes into resolv.conf; by default none.
	SearchDomain string
	// Fresh adds to the folders that the instance has of its own, empty and in memory (DefaultFresh always are).
	Fresh []string
	// Mask adds to the machine's files and folders that the instance sees empty (DefaultMask always are).
	Mask []string
	// Keep lists paths beneath fresh or masked folders that the instance must see: executables that it runs, say.
	Keep []string
	// Log gets progress and times; by default nothing is logged.
	Log *slog.Logger

	// The rest is for VMs only.

	MemoryMiB int // 2048
	CPUs      int // 2
	// MaxENIs is how many ENIs can be attached at a time; 4.
	MaxENIs int
	Kernel  artifacts.Kernel
	// Modules are kernel modules to load at boot.
	Modules []string

	firstBoot time.Duration // the constant of that name
}

// Instance is a running instance. All methods may be called concurrently.
type Instance interface {
	// AttachENI hot-plugs a network interface and returns its other end, which the caller closes after DetachENI (or
	// Close; closing it twice is fine). The ENI with device index 0 on card 0 gets its addresses (IPv4 and, where it has
	// one, IPv6), the default routes, the name server and the host name; all others are left as EC2 leaves them: down and
	// without an address.
	AttachENI(ctx context.Context, e ec2.AttachmentSpec) (vpc.Link, error)
	// DetachENI returns once the instance has let go of the link.
	DetachENI(ctx context.Context, eniID string) error
	// Exec runs a command to its end. A command that fails is no error: see Result.ExitCode. When ctx ends, the
	// command's whole process group is killed.
	Exec(ctx context.Context, c Command) (Result, error)
	// Start runs a long-lived process whose output goes to StateDir/logs/<name>.log.
	Start(ctx context.Context, name string, c Command) (Process, error)
	// Close ends the instance at once, like a power cut, and removes all that was made for it but StateDir.
	Close() error
	// Done is closed when the instance has ended, by Close or by itself.
	Done() <-chan struct{}
	// NetnsPath is the path of the network namespace on the machine, "" for a VM.
	NetnsPath() string
}

// Command is what to run inside an instance.
type Command struct {
	Argv []string
	// Env is added to PATH, HOME and LANG.
	Env   []string
	Dir   string
	Stdin []byte
	// MaxOutput bounds each of the two outputs that Exec returns; by default 8 MiB. What exceeds it is dropped and Exec
	// returns ErrOutputTruncated with the result.
	MaxOutput int
	// Stdout and Stderr, when set, get Exec's output as it comes, instead of Result.
	Stdout, Stderr io.Writer
}

// Result is how a command ended.
type Result struct {
	Stdout, Stderr []byte
	// ExitCode is the command's own, or 128 + the signal's number.
	ExitCode int
}

// Process is a running process of an instance.
type Process interface {
	// PID is the process's id as the instance sees it.
	PID() int
	Signal(ctx context.Context, s syscall.Signal) error
	// Wait returns the exit code when the process has ended.
	Wait(ctx context.Context) (int, error)
}

// Errors that callers branch on.
var (
	ErrClosed          = errors.New("the instance has ended")
	ErrNotAttached     = errors.New("the ENI is not attached to the instance")
	ErrAttached        = errors.New("the ENI is already attached to the instance")
	ErrNoFreePort      = errors.New("the instance has no free slot for another ENI")
	ErrOutputTruncated = errors.New("the command's output was cut off")
	ErrNotFound        = errors.New("no such file or process in the instance")
)

// DefaultFresh are the folders that every instance has of its own: where Kubernetes, a container runtime and other
// programs keep state, on the machine perhaps that of the machine's own ones.
func DefaultFresh() []string {
	return []string{
		"/etc/cni", "/opt/cni", "/etc/kubernetes", "/etc/containerd", "/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni",
		"/run", "/tmp", "/var/tmp", "/var/log",
	}
}

// DefaultMask is what of the machine no instance sees, its secrets above all.
func DefaultMask() []string {
	return []string{
		"/var/lib/etcd", "/var/lib/docker", "/var/lib/postgresql", "/root", "/home", "/etc/ssh", "/etc/ssl/private",
		"/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-",
	}
}

// Agent builds the guest agent or finds it in the cache.
func Agent(ctx context.Context, c *artifacts.Cache) (string, error) {
	return c.Go(ctx, "guest-agent", "./lab/instance/guest/cmd", "")
}

var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-]{0,40}$`)

// prepared checks a spec, fills in the defaults and makes the state folder.
func (s Spec) prepared() (Spec, error) {
	if !validID.MatchString(s.ID) {
		return s, fmt.Errorf("instance id %q: want up to 41 letters, digits and dashes", s.ID)
	}
	if s.Agent == "" {
		return s, fmt.Errorf("start instance %s: no guest agent given", s.ID)
	}
	if !filepath.IsAbs(s.StateDir) || filepath.Clean(s.StateDir) == "/" {
		return s, fmt.Errorf("start instance %s: state folder %q is not an absolute path of a folder of its own", s.ID, s.StateDir)
	}
	s.StateDir = filepath.Clean(s.StateDir)
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.Log = s.Log.With("instance", s.ID)
	if !s.DNS.IsValid() {
		s.DNS = netip.AddrFrom4([4]byte{192, 168, 0, 2})
	}
	s.Fresh = append(DefaultFresh(), s.Fresh...)
	s.Mask = append(DefaultMask(), s.Mask...)
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 2048
	}
	if s.CPUs == 0 {
		s.CPUs = 2
	}
	if s.MaxENIs == 0 {
		s.MaxENIs = 4
	}
	if s.firstBoot == 0 {
		s.firstBoot = firstBoot
	}
	if s.MaxENIs < 0 || s.MaxENIs > 15 {
		return s, fmt.Errorf("start instance %s: %d ENI slots; 1 to 15 are possible", s.ID, s.MaxENIs)
	}
	if err := os.MkdirAll(filepath.Join(s.StateDir, "logs"), 0o755); err != nil {
		return s, fmt.Errorf("make state folder of instance %s: %w", s.ID, err)
	}
	return s, nil
}

func (s Spec) log(name string) string { return filepath.Join(s.StateDir, "logs", name+".log") }

// root is how the instance's root file system differs from the machine's; also says what else must stay visible.
func (s Spec) root(also ...string) guest.Root {
	return guest.Root{StateDir: s.StateDir, Fresh: s.Fresh, Mask: s.Mask, Keep: append(also, s.Keep...)}
}

// isPrimary tells whether EC2 calls this the primary network interface.
func isPrimary(e ec2.AttachmentSpec) bool { return e.DeviceIndex == 0 && e.NetworkCard == 0 }

// primaryConfig is what the DHCP server and cloud-init would tell the instance.
func (s Spec) primaryConfig(e ec2.AttachmentSpec) *guest.Primary {
	name := s.Name
	if name == "" {
		name = "ip-" + strings.ReplaceAll(e.Address.String(), ".", "-")
	}
	p := &guest.Primary{
		MAC: e.MAC.String(), Address: netip.PrefixFrom(e.Address, e.SubnetCIDR.Bits()),
		Gateway: e.SubnetCIDR.Masked().Addr().Next(), DNS: s.DNS, Search: s.SearchDomain, Hostname: name,
	}
	if e.IPv6.IsValid() {
		p.IPv6, p.GatewayIPv6 = e.IPv6, vpc.RouterIPv6
	}
	return p
}

func checkAttachment(e ec2.AttachmentSpec) error {
	switch {
	case e.ENIID == "":
		return errors.New("attach ENI: no id given")
	case len(e.MAC) != 6:
		return fmt.Errorf("attach ENI %s: MAC %q has not 6 bytes", e.ENIID, e.MAC)
	case isPrimary(e) && (!e.Address.Is4() || !e.SubnetCIDR.IsValid() || !e.SubnetCIDR.Contains(e.Address)):
		return fmt.Errorf("attach ENI %s: address %s is not of subnet %s", e.ENIID, e.Address, e.SubnetCIDR)
	}
	return nil
}

// tail returns the last lines of a log file, for an error.
func tail(file string) string {
	const most = 2000
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return strings.TrimSpace(string(b))
}
