package store

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Key names one interface of one sandbox.
type Key struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

func (k Key) String() string { return k.ContainerID + "/" + k.IfName }

// Pod is a pod's identity; the UID decides.
type Pod struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

func (p Pod) String() string { return p.Namespace + "/" + p.Name }

// Regular is a secondary address of one of the instance's ENIs.
type Regular struct {
	Address    netip.Addr `json:"address"`
	ENIID      string     `json:"eniID"`
	Device     int        `json:"device"`
	RouteTable int        `json:"routeTable"`
	// Card is the network card that the ENI is on.
	Card int `json:"card,omitempty"`
}

// Branch is a branch ENI behind the trunk.
type Branch struct {
	ENIID      string       `json:"eniID"`
	MAC        string       `json:"mac"`
	VLAN       int          `json:"vlan"`
	Address    netip.Addr   `json:"address"`
	SubnetCIDR netip.Prefix `json:"subnetCIDR"` // zero where an IPv6 pod's is not known
	// Standard is set for a pod in standard mode. It keeps its mode when the node's is changed.
	Standard bool `json:"standard,omitempty"`
}

// Allocation is what one attachment of one sandbox holds: exactly one of Regular and Branch is set.
type Allocation struct {
	Key
	Network string    `json:"network,omitempty"`
	Pod     Pod       `json:"pod"`
	Since   time.Time `json:"since"`
	Regular *Regular  `json:"regular,omitempty"`
	Branch  *Branch   `json:"branch,omitempty"`
	// Further are the addresses beside Regular of a pod with several interfaces, by network card, one of each. A release that
	// does not know them passes them over, and keeps Regular.
	Further []Regular `json:"further,omitempty"`
}

// Regulars are all addresses of the instance's own ENIs that are held, Regular first.
func (a Allocation) Regulars() []Regular {
	if a.Regular == nil {
		return nil
	}
	return append([]Regular{*a.Regular}, a.Further...)
}

// Addresses are all that are held, a branch ENI's too, the first interface's first.
func (a Allocation) Addresses() (out []netip.Addr) {
	if a.Branch != nil {
		return []netip.Addr{a.Branch.Address}
	}
	for _, r := range a.Regulars() {
		out = append(out, r.Address)
	}
	return out
}

// Cooling is an address that was freed and rests. In memory Until is by the clock that nobody sets; the file has it by the
// machine's.
type Cooling struct {
	Address netip.Addr `json:"address"`
	ENIID   string     `json:"eniID"`
	Until   time.Time  `json:"until"`
}

// Leaving is an address (a /32 or /128) or a prefix of an ENI that is being given back to EC2: nothing of it is handed out.
type Leaving struct {
	Prefix netip.Prefix `json:"prefix"`
	ENIID  string       `json:"eniID"`
}

// Released is a branch pod of which this node has nothing left, said to the ledger until the ledger has heard it. Its
// pod is never wired again.
type Released struct {
	PodUID string    `json:"podUID"`
	VLAN   int       `json:"vlan"`
	ENIID  string    `json:"eniID"`
	At     time.Time `json:"at"`
}

// state is what the file holds. Slices are kept sorted, so that equal states are equal bytes.
type state struct {
	Allocations []Allocation `json:"allocations"`
	Cooling     []Cooling    `json:"cooling"`
	Released    []Released   `json:"released"`
	// Retiring are the ENIs that are being given back to EC2: nothing of them is handed out.
	Retiring []string `json:"retiring"`
	// Leaving are addresses and prefixes that are being given back to EC2, until neither EC2 nor IMDS shows them.
	Leaving []Leaving `json:"leaving,omitempty"`
	// TakenOver is not changed once it is set.
	TakenOver *TakenOver `json:"takenOver,omitempty"`
}

func (s *state) clone() *state {
	return &state{slices.Clone(s.Allocations), slices.Clone(s.Cooling), slices.Clone(s.Released), slices.Clone(s.Retiring), slices.Clone(s.Leaving), s.TakenOver}
}

func (s *state) sort() {
	slices.SortFunc(s.Allocations, func(a, b Allocation) int { return strings.Compare(a.Key.String(), b.Key.String()) })
	slices.SortFunc(s.Cooling, func(a, b Cooling) int { return a.Address.Compare(b.Address) })
	slices.SortFunc(s.Released, func(a, b Released) int { return strings.Compare(a.PodUID, b.PodUID) })
	slices.Sort(s.Retiring)
	slices.SortFunc(s.Leaving, func(a, b Leaving) int { return a.Prefix.Compare(b.Prefix) })
}

const fileVersion = 1

// envelope is the file: the checksum is over the exact bytes of State.
type envelope struct {
	Version int `json:"version"`
	// Oldest is the oldest version that may read the file though it has another one: what is new in it may be passed over. A
	// later release sets it, so that an update can be taken back with the pods that run; 0: none may.
	Oldest int             `json:"oldest,omitempty"`
	SHA256 string          `json:"sha256"`
	State  json.RawMessage `json:"state"`
}

func encode(s *state) ([]byte, error) {
	s.sort()
	onDisk := s.clone()
	for i := range onDisk.Cooling {
		onDisk.Cooling[i].Until = onDisk.Cooling[i].Until.UTC()
	}
	body, err := json.Marshal(onDisk)
	if err != nil {
		return nil, fmt.Errorf("encode the allocations: %w", err)
	}
	sum := sha256.Sum256(body)
	return json.Marshal(envelope{Version: fileVersion, SHA256: hex.EncodeToString(sum[:]), State: body})
}

// decode is the reverse of encode. It never panics, whatever the bytes.
func decode(b []byte) (*state, error) {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return nil, fmt.Errorf("not a file of allocations: %w", err)
	}
	if e.Version != fileVersion && (e.Version < fileVersion || e.Oldest < 1 || e.Oldest > fileVersion) {
		return nil, fmt.Errorf("version %d of the file is not known, this is version %d", e.Version, fileVersion)
	}
	if sum := sha256.Sum256(e.State); e.SHA256 != hex.EncodeToString(sum[:]) {
		return nil, errors.New("the checksum does not match")
	}
	var s state
	if err := json.Unmarshal(e.State, &s); err != nil {
		return nil, fmt.Errorf("the allocations can't be decoded: %w", err)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	s.sort()
	return &s, nil
}

// check holds the invariants that every state on disk and in memory has.
func (s *state) check() error {
	keys, addrs, vlans := map[Key]bool{}, map[netip.Addr]string{}, map[int]string{}
	for _, a := range s.Allocations {
		if keys[a.Key] {
			return fmt.Errorf("%s is in it twice", a.Key)
		}
		keys[a.Key] = true
		switch {
		case a.ContainerID == "" || a.IfName == "":
			return errors.New("an allocation without a sandbox")
		case (a.Regular == nil) == (a.Branch == nil):
			return fmt.Errorf("%s has not exactly one interface", a.Key)
		case a.Branch != nil && len(a.Further) > 0:
			return fmt.Errorf("%s has a branch ENI and addresses beside it", a.Key)
		case a.Regular != nil:
			cards := map[int]bool{}
			for _, r := range a.Regulars() {
				if _, twice := addrs[r.Address]; !r.Address.IsValid() || twice {
					return fmt.Errorf("address %s of %s is invalid or given twice", r.Address, a.Key)
				}
				if cards[r.Card] {
					return fmt.Errorf("%s has two addresses of network card %d", a.Key, r.Card)
				}
				addrs[r.Address], cards[r.Card] = r.ENIID, true
			}
		default:
			if uid, taken := vlans[a.Branch.VLAN]; taken && uid != a.Pod.UID {
				return fmt.Errorf("VLAN %d belongs to two pods", a.Branch.VLAN)
			}
			vlans[a.Branch.VLAN] = a.Pod.UID
		}
	}
	for _, c := range s.Cooling {
		if _, twice := addrs[c.Address]; !c.Address.IsValid() || twice {
			return fmt.Errorf("cooling address %s is invalid or in use", c.Address)
		}
		addrs[c.Address] = c.ENIID
	}
	for _, l := range s.Leaving {
		if !l.Prefix.IsValid() {
			return errors.New("what is given back is no address")
		}
		for addr, eni := range addrs {
			if l.holds(eni, addr) {
				return fmt.Errorf("%s of %s is given back and %s is in use", l.Prefix, l.ENIID, addr)
			}
		}
	}
	return nil
}

// holds says whether the address, as one of that ENI, is being given back. EC2 may have given it to another ENI meanwhile. Where
// it is not known of which ENI the address is (""), it may be.
func (l Leaving) holds(eniID string, a netip.Addr) bool {
	return l.Prefix.Contains(a) && (eniID == l.ENIID || eniID == "" || l.ENIID == "")
}

func anyIn(p netip.Prefix, addrs map[netip.Addr]bool) bool {
	for a := range addrs {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
