package ipamd

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
)

// Pods have their addresses of the first network card. Those that ask for several interfaces (ENABLE_MULTI_NIC) have one of
// each further card beside it. Nothing is kept ahead there: addresses come with the pods, and go some time after them.

// burst is how long the pool waits for more pods that want addresses of a further card, once one does: pods of a kind come
// together, and are one call of EC2 then.
const burst = 50 * time.Millisecond

// waiters are the pods that wait for an address of one network card.
type waiters struct {
	sandboxes map[store.Key]bool
	since     time.Time // when the first of them began to
}

// besides counts those that have no address yet: who has just got one is there until its ADD goes on, and would count twice.
func (w waiters) besides(have []store.Allocation) int {
	n := len(w.sandboxes)
	for _, al := range have {
		if w.sandboxes[al.Key] {
			n--
		}
	}
	return n
}

// several says whether the pod gets an interface on each network card. It fails where the pod asks for what it can't have.
func (a *Agent) several(in *rpc.AddRequest, pod kube.Pod) (bool, error) {
	warn := func(reason, text string) {
		a.events.Pod(pod.Namespace, pod.Name, pod.UID, reason, text+"; it gets one interface")
	}
	switch {
	case pod.NICConfig == "":
		return false, nil
	case pod.NICConfig != kube.SeveralNICs:
		warn("NICConfigUnknown", fmt.Sprintf("the annotation %s of the pod is %q, and the one value that is known is %s", kube.NICConfigKey, pod.NICConfig, kube.SeveralNICs))
		return false, nil
	case !a.opt.Config.MultiNIC:
		warn("NICConfigOff", fmt.Sprintf("the pod asks for several interfaces (%s: %s) and ENABLE_MULTI_NIC is off on this node", kube.NICConfigKey, kube.SeveralNICs))
		return false, nil
	case pod.Branch:
		return false, fmt.Errorf("%w: pod %s/%s asks for several interfaces (%s: %s) and for a branch ENI with security groups of its own, and can't have both: take the annotation away, or have no SecurityGroupPolicy select it",
			podeni.ErrRefused, pod.Namespace, pod.Name, kube.NICConfigKey, kube.SeveralNICs)
	}
	return true, wiresSeveral(in)
}

// wiresSeveral refuses an executable that would wire the first interface alone, and say nothing.
func wiresSeveral(in *rpc.AddRequest) error {
	if in.GetSeveralInterfaces() {
		return nil
	}
	return fmt.Errorf("%w: pod %s has several interfaces and this node's aws-cni (%s) can wire one: have the aws-node pod's init container install this version's",
		podeni.ErrRefused, name(in.GetPod()), cmp.Or(in.GetVersion(), "of an unknown version"))
}

// interfaceOf is what an executable is told of one address.
func (a *Agent) interfaceOf(r store.Regular) *rpc.RegularInterface {
	return &rpc.RegularInterface{
		Address: r.Address.String(), EniId: r.ENIID, DeviceNumber: uint32(r.Device), RouteTable: a.routeTable(&r), NetworkCard: uint32(r.Card),
	}
}

// slotOf is where an ENI is attached.
func slotOf(e enis.ENI) hostnet.Slot { return hostnet.Slot{Card: e.Card, Device: e.Device} }

// serves says whether pods may get addresses of a managed ENI. Those of further cards are in the node's own subnet, whatever
// custom networking and the tags of subnets say of the first one's.
func (a *Agent) serves(at placed, e enis.ENI) bool {
	if e.Card != 0 {
		return a.opt.Config.MultiNIC
	}
	return at.Serves(e.SubnetID, e.Primary())
}

// pooledCards are the network cards that the pool has to do with: those that pods may have addresses of, and those on which
// ENIs of the agent are left from when they might.
func (a *Agent) pooledCards(all []enis.ENI) []int {
	cards := []int{0}
	if a.opt.Config.MultiNIC {
		for card := 1; card < len(a.limits().InterfacesPerNetworkCard); card++ {
			cards = append(cards, card)
		}
	}
	for _, e := range all {
		if !e.Trunk && !e.Unmanaged && !slices.Contains(cards, e.Card) {
			cards = append(cards, e.Card)
		}
	}
	slices.Sort(cards)
	return cards
}

// cardPlace is where a card's ENIs are made: on further ones, in the primary ENI's subnet with its groups. It is called with
// the lock held.
func (a *Agent) cardPlace(at placed, card int) placed {
	if card == 0 {
		return at
	}
	primary := at.Primary()
	p := placed{cordoned: at.cordoned}
	p.Among = []string{primary.SubnetID}
	switch {
	case primary.SubnetID == "":
		p.Reason = placement.NotKnown
	case a.opt.Now().Before(a.full[primary.SubnetID].until):
		p.Reason = placement.Full
	default:
		p.Places = []placement.Place{primary}
	}
	return p
}

// severalCards are the network cards of which a pod with several interfaces gets an address: those that have an ENI for pods,
// or can have one. EFA-only interfaces are none. known is false while that can't be told.
func (a *Agent) severalCards() (cards []int, known bool) {
	cards = []int{0}
	frozen := a.opt.Config.Frozen()
	if !frozen && !a.limitsKnown() {
		return cards, false
	}
	all := a.inventory.ENIs()
	for _, card := range a.pooledCards(all) {
		used, others := 0, 0
		for _, e := range all {
			switch {
			case e.Card != card:
			case e.Trunk || e.Unmanaged:
				others++
			default:
				used++
			}
		}
		switch {
		case card == 0:
		case used > 0 || !frozen && others < a.cardLimit(card):
			cards = append(cards, card)
		case !frozen && a.unexplained.Load():
			return cards, false // it may be one for pods
		}
	}
	return cards, true
}

// wants notes that a sandbox waits for an address of each of the cards, and done that it does no more.
func (a *Agent) wants(k store.Key, cards []int) (done func()) {
	now := a.opt.Now() // one for all cards, so that their ENIs are attached at the same time
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, card := range cards {
		w := a.waiting[card]
		if len(w.sandboxes) == 0 {
			w = waiters{sandboxes: map[store.Key]bool{}, since: now}
		}
		w.sandboxes[k] = true
		a.waiting[card] = w
	}
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, card := range cards {
			delete(a.waiting[card].sandboxes, k)
		}
	}
}

// gathers is how long the pool waits yet, as of now, for more pods of a burst before it asks for addresses of the card; 0: no
// longer. It is called with the lock held.
func (a *Agent) gathers(card int, now time.Time) time.Duration {
	w := a.waiting[card]
	if card == 0 || len(w.sandboxes) == 0 {
		return 0
	}
	return max(0, burst-now.Sub(w.since))
}

// onCard names a network card in what is said of it; the first one only where a pod wants others, too.
func onCard(card int, several bool, err error) error {
	if err == nil || !several {
		return err
	}
	return fmt.Errorf("network card %d: %w", card, err)
}
