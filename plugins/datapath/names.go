package datapath

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Numbers and names that other agents on the node know (the wiring contract of EKS), or that the node agent and
// the executable share.
const (
	// MaxVLAN is the highest VLAN id that the control plane gives to a branch ENI. 121 and up would also reach the
	// kernel's own table numbers, 253 to 255.
	MaxVLAN = 120
	// BranchVethPrefix starts the host veth of a strict branch pod; regular pods' is configured.
	BranchVethPrefix = "vlan"
	// LocalPodsTable has the /32 (/128) of each regular pod, and of each branch pod in standard mode, by its host veth;
	// the agent's rule 512 sends everything through it.
	LocalPodsTable = 511
	// StrictPodsTable has the same of each strict branch pod. Only the agent's rules for node-local destinations look it up.
	StrictPodsTable = 510
	// MainTable is the kernel's main routing table, where the primary ENI's routes are.
	MainTable = 254
	// PriorityBranch is that of the iif rules of strict branch pods, before the local table's (20 in strict mode).
	PriorityBranch = 10
	// PriorityFromPod is that of the rule that sends a regular pod's packets out by its own ENI, where the agent's marks
	// don't.
	PriorityFromPod = 1536
	// PriorityFromFurther is that of the rules in a pod's own namespace: from the address of an interface on a further
	// network card to that interface's table.
	PriorityFromFurther = 1
	// PriorityStandard is that of the iif rule of a branch pod in standard mode, behind all that is local.
	PriorityStandard = 1537
	// MaxFurther is how many interfaces a pod may have beside its first. Instances have at most 32 network cards.
	MaxFurther = 31

	branchTableBase  = 100
	furtherTableBase = 100 // in the pod's own namespace
	looseRPFilter    = 2
	nameHashLength   = 11
)

// PodGateway is the default gateway of each pod whose address is of the same family as this one: no host owns it, a
// permanent neighbour entry answers for it.
func PodGateway(address netip.Addr) netip.Addr {
	if address.Is6() {
		return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
	}
	return netip.AddrFrom4([4]byte{169, 254, 1, 1})
}

// HostVethName is the name of a pod's veth on the host. The network policy agent computes the same.
func HostVethName(prefix, namespace, pod string) string {
	sum := sha1.Sum([]byte(namespace + "." + pod))
	return prefix + hex.EncodeToString(sum[:])[:nameHashLength]
}

// A pod with interfaces on several network cards has its first as every pod has it; the further ones are numbered from 1
// on. On the host the i-th is called after "<pod>.<i>", which the network policy agent computes, too.
const furtherIfPrefix = "mNicIf"

// FurtherIfName is the name that the pod's further interface of a number has in the pod.
func FurtherIfName(number int) string { return furtherIfPrefix + strconv.Itoa(number) }

// FurtherNumber is the inverse of FurtherIfName.
func FurtherNumber(ifName string) (int, bool) {
	digits, ok := strings.CutPrefix(ifName, furtherIfPrefix)
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n >= 1 && n <= MaxFurther && FurtherIfName(n) == ifName
}

// FurtherPodName stands for the pod's name where the host's side of a further interface is named or locked. A pod may be
// called so itself; see kernel.claim.
func FurtherPodName(pod string, number int) string {
	if number == 0 {
		return pod
	}
	return pod + "." + strconv.Itoa(number)
}

// furtherTable is the routing table, in the pod, of a further interface.
func furtherTable(number int) int { return furtherTableBase + number }

// VLANLinkName is the name of the link of a branch ENI.
func VLANLinkName(id int) string { return "vlan.eth." + strconv.Itoa(id) }

// VLANLinkID is the inverse of VLANLinkName.
func VLANLinkID(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, "vlan.eth.")
	id, err := strconv.Atoi(digits)
	return id, ok && err == nil && id >= 1 && id <= MaxVLAN && VLANLinkName(id) == name
}

// VLANTable is the routing table of a branch ENI.
func VLANTable(id int) int { return branchTableBase + id }

// Owner is one interface of one sandbox, by the CNI specification's identifiers.
type Owner struct {
	ContainerID string
	IfName      string
}

func (o Owner) String() string { return o.ContainerID + "/" + o.IfName }

// Mark is what the ifalias of each of our links says: whose it is, and what a DEL needs when the runtime has lost the
// result. In the kernel it reads "branchline:<container id>/<interface> [vlan=<id>] [mode=standard] [ip=<address>]
// [further=<n>] [number=<n>]". The links of a pod's further interfaces have the owner of its first: a sandbox is one.
type Mark struct {
	Owner
	VLAN    int
	Mode    Mode // of a branch pod
	Address netip.Addr
	Further int // on the first interface's link: how many further ones the pod has
	Number  int // of a further interface; 0: the first
}

// MarkPrefix starts the ifalias of every link of ours.
const MarkPrefix = "branchline:"

// maxMarkedID keeps the alias within what the kernel takes; longer container ids are marked by their hash.
const maxMarkedID = 128

func markedID(containerID string) string {
	if len(containerID) <= maxMarkedID {
		return containerID
	}
	sum := sha256.Sum256([]byte(containerID))
	return "sha256-" + hex.EncodeToString(sum[:])
}

func (m Mark) String() string {
	var b strings.Builder
	b.WriteString(MarkPrefix + markedID(m.ContainerID) + "/" + m.IfName)
	if m.VLAN != 0 {
		b.WriteString(" vlan=" + strconv.Itoa(m.VLAN))
	}
	if m.Mode == Standard {
		b.WriteString(" mode=standard")
	}
	if m.Address.IsValid() {
		b.WriteString(" ip=" + m.Address.String())
	}
	if m.Further != 0 {
		b.WriteString(" further=" + strconv.Itoa(m.Further))
	}
	if m.Number != 0 {
		b.WriteString(" number=" + strconv.Itoa(m.Number))
	}
	return b.String()
}

// Is says whether the mark is that of the sandbox's interface.
func (m Mark) Is(o Owner) bool {
	return m.IfName == o.IfName && m.ContainerID == markedID(o.ContainerID)
}

// ErrNoMark says that an ifalias is not one of ours.
var ErrNoMark = errors.New("link carries no branchline mark")

// ParseMark reads an ifalias. Unknown fields, of a later version, are passed over.
func ParseMark(alias string) (Mark, error) {
	rest, ok := strings.CutPrefix(alias, MarkPrefix)
	if !ok {
		return Mark{}, ErrNoMark
	}
	fields := strings.Split(rest, " ")
	id, ifName, ok := strings.Cut(fields[0], "/")
	if !ok || id == "" || ifName == "" {
		return Mark{}, fmt.Errorf("%w: no <container id>/<interface> in ifalias %q", ErrNoMark, alias)
	}
	m := Mark{Owner: Owner{ContainerID: id, IfName: ifName}}
	for _, field := range fields[1:] {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "vlan":
			m.VLAN = within(value, MaxVLAN)
		case "further":
			m.Further = within(value, MaxFurther)
		case "number":
			m.Number = within(value, MaxFurther)
		case "mode":
			if value == "standard" {
				m.Mode = Standard
			}
		case "ip":
			if a, err := netip.ParseAddr(value); err == nil && a.Zone() == "" {
				m.Address = a
			}
		}
	}
	return m, nil
}

// within reads a number from 1 to most; anything else is 0.
func within(text string, most int) int {
	if n, err := strconv.Atoi(text); err == nil && n >= 1 && n <= most {
		return n
	}
	return 0
}

// linkMAC derives a veth end's locally administered address from its sandbox. It is set when the link is made: udev
// replaces an address that the kernel has drawn, and the pod's permanent neighbour entry would then be wrong.
func linkMAC(o Owner, end string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(end + "|" + o.String()))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// linkLocal is the modified EUI-64 address of a MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 0x02, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}
