package ipamd

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/ipamd/enis"
)

// scene runs cases of a model test.
type scene struct {
	t     *testing.T
	cloud func(*stage) provider
	most  int // steps
	told  bool
	// targets are the environments that are played; nil: those of one network card.
	targets []map[string]string
	// apis have flaws, and codes is what EC2 refuses with; nil: what is asked of EC2 and IMDS in IPv4 clusters.
	apis, codes []string
	// before plays what happens before the first agent starts; nil: nothing.
	before func(*acts)
}

// play runs one case in its own time, and lets rapid see what it has to say. What happened in the first one that fails is
// logged: pauses of the agent are random, so that rapid may not see the same again.
func (c *scene) play(rt *rapid.T) {
	var said any
	a := &acts{rt: rt, pods: []string{"a", "b", "c", "d", "e", "f", "g", "h"}, targets: targets, apis: apis, codes: refusals}
	if c.targets != nil {
		a.targets = c.targets
	}
	if c.apis != nil {
		a.apis, a.codes = c.apis, c.codes
	}
	dir := c.t.TempDir()
	synctest.Test(c.t, func(*testing.T) {
		defer func() {
			said = recover()
			if s := a.stage; s != nil {
				s.over()
			}
		}()
		a.stage = newStage(rt, dir, c.cloud)
		a.play(c.most, c.before)
	})
	if said != nil {
		if !c.told {
			c.told = true
			c.t.Logf("what happened:\n%s\n%v", strings.Join(a.history, "\n"), said)
		}
		panic(said)
	}
}

// TestP5P50TheAgentNeverLiesAboutAddresses plays random interleavings of ADD, DEL, kills of the agent at any of its disk's
// steps, reboots, a lost memory, ENIs and addresses that come and go by its own hands and by others', with IMDS, EC2's
// descriptions and its answers late, lost or repeated, the kernel's late or refused, and the API server away, for an hour too.
// After each step what sandboxes were told is compared with what the VPC has: no address is given twice, none that the VPC
// has not on that ENI, none before its cool-down, none is taken back while it is held, and none is forgotten. Without the API
// server goes on what does not need it: a DEL succeeds, a repeated ADD and one of a pod that is known are answered, and
// nothing is freed that it would have had to confirm. In the end all that was in between is over, and nothing is left hidden
// or behind.
func TestP5P50TheAgentNeverLiesAboutAddresses(t *testing.T) {
	rapid.Check(t, (&scene{t: t, cloud: newPlain, most: 30}).play)
}

// TestP5P50TheAgentNeverLiesAboutAddressesOfSeveralCards plays the same where some pods have an interface on each of two
// network cards, and the mode is switched on and off meanwhile.
func TestP5P50TheAgentNeverLiesAboutAddressesOfSeveralCards(t *testing.T) {
	rapid.Check(t, (&scene{t: t, cloud: newPlain, most: 30, targets: severalCards}).play)
}

var targets = []map[string]string{
	{"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "3"},
	{"WARM_IP_TARGET": "2"},
	{"WARM_ENI_TARGET": "1"},
	{"WARM_ENI_TARGET": "0"},
	{"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "0"},
	{"ENABLE_PREFIX_DELEGATION": "true", "WARM_IP_TARGET": "4"},
}

// severalCards are as targets, on an instance with two network cards.
var severalCards = []map[string]string{
	{"ENABLE_MULTI_NIC": "true", "WARM_IP_TARGET": "1"},
	{"ENABLE_MULTI_NIC": "true", "WARM_ENI_TARGET": "0"},
	{"ENABLE_MULTI_NIC": "true", "ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "0"},
}

func (a *acts) play(most int, before func(*acts)) {
	a.rt.Helper()
	chosen := rapid.SampledFrom(a.targets).Draw(a.rt, "targets")
	a.did("%v", chosen)
	maps.Copy(a.env, chosen)
	// What goes back as soon as it can is what may be believed to be here, or gone, too early.
	a.env["BRANCHLINE_KEEP_SURPLUS"] = rapid.SampledFrom([]string{"0", "0", "0", "300"}).Draw(a.rt, "surplus is kept for")
	for _, p := range a.pods {
		a.create(p)
	}
	if before != nil {
		before(a)
	}
	a.settle()
	for range rapid.IntRange(5, most).Draw(a.rt, "steps") {
		a.one()
		a.pass(rapid.SampledFrom([]time.Duration{0, 0, 50 * time.Millisecond, 150 * time.Millisecond, time.Second}).Draw(a.rt, "pause"))
		a.settle()
	}
	a.end()
}

type acts struct {
	*stage
	rt          *rapid.T
	pods        []string
	history     []string
	targets     []map[string]string
	apis, codes []string
}

// did notes what was done, and how things are then.
func (a *acts) did(format string, args ...any) {
	var now []string
	for id, e := range a.cloud.enis() {
		now = append(now, fmt.Sprintf("%s@%d.%d%v%v%v", id, e.Card, e.Device, e.Addresses, e.Prefixes, e.IPv6Prefixes))
	}
	slices.Sort(now)
	a.history = append(a.history, fmt.Sprintf("%s %s; %v", time.Now().Format("04:05.000"), fmt.Sprintf(format, args...), now))
}

func (a *acts) pod() string { return rapid.SampledFrom(a.pods).Draw(a.rt, "pod") }

// anENI is one of the instance's secondary ENIs, or "".
func (a *acts) anENI(primaryToo bool) string {
	var ids []string
	for id, e := range a.cloud.enis() {
		if primary := e.Card == 0 && e.Device == 0; e.Device >= 0 && (!primary || primaryToo) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if len(ids) == 0 {
		return ""
	}
	return rapid.SampledFrom(ids).Draw(a.rt, "eni")
}

var apis = []string{
	"AssignPrivateIpAddresses", "UnassignPrivateIpAddresses", "CreateNetworkInterface", "AttachNetworkInterface", "DetachNetworkInterface",
	"DeleteNetworkInterface", "DescribeNetworkInterfaces", "IMDS",
}

var refusals = []string{"RequestLimitExceeded", "UnauthorizedOperation", "InternalError", "InsufficientFreeAddressesInSubnet"}

// one thing happens.
func (a *acts) one() {
	a.rt.Helper()
	a.act(rapid.SampledFrom([]string{
		"add", "add", "add", "add", "many", "again", "del", "del", "del", "lost del", "all del", "tide", "replace", "recreate", "full disk", "pass", "pass", "pass", "kill", "cut", "cut", "reboot",
		"late IMDS", "late IMDS", "late EC2", "netlink", "flaw", "flaw", "bring", "take", "assign", "unassign", "lose memory", "calm", "switch", "API", "API", "API",
	}).Draw(a.rt, "what"))
}

func (a *acts) act(what string) {
	a.rt.Helper()
	switch what {
	default:
		a.rt.Fatalf("nobody knows how to %s", what)
	case "add":
		if p := a.pod(); a.free(p) {
			a.did("add %s", a.add(p).id)
		}
	case "many":
		a.many()
	case "again":
		if b := a.living(a.pod()); b != nil && !b.forgotten {
			a.did("again %s", b.id)
			a.again(b)
		}
	case "del", "lost del":
		if b := a.living(a.pod()); b != nil {
			a.did("%s %s %v", what, b.id, b.addresses())
			a.del(b, what == "del")
		}
	case "all del":
		a.allDel()
	case "tide": // all go, what they had is given back with answers lost, and all come at that moment
		a.many()
		a.pass(time.Second)
		a.cloud.fail(flaw{api: "UnassignPrivateIpAddresses", kind: lost, times: 3})
		a.allDel()
		a.pass(30 * time.Second)
		a.pass(rapid.SampledFrom([]time.Duration{200, 300, 500, 700, 1000, 2000}).Draw(a.rt, "milliseconds") * time.Millisecond)
		a.many()
	case "replace":
		if p := a.pod(); a.free(p) {
			a.create(p)
			a.did("replace %s", p)
		}
	case "recreate": // by force: its sandbox goes on for a while
		p := a.pod()
		a.create(p)
		a.did("recreate %s", p)
	case "full disk":
		a.did("%s", what)
		a.setDisk(syscall.ENOSPC)
	case "pass":
		a.did("time passes")
		a.pass(rapid.SampledFrom([]time.Duration{2 * time.Second, 10 * time.Second, 31 * time.Second, 65 * time.Second, 130 * time.Second}).Draw(a.rt, "time"))
	case "kill":
		a.did("%s", what)
		a.kill()
	case "cut":
		steps, torn := rapid.IntRange(0, 5).Draw(a.rt, "steps of the disk"), rapid.Bool().Draw(a.rt, "torn")
		a.did("cut after %d, torn %t", steps, torn)
		a.running().h.killAfter(steps, torn)
	case "reboot":
		keep := rapid.Bool().Draw(a.rt, "the disk stays")
		a.did("reboot, the disk stays: %t", keep)
		a.reboot(keep)
	case "late IMDS":
		by := time.Duration(rapid.SampledFrom([]int{0, 1, 5, 20, 60}).Draw(a.rt, "seconds")) * time.Second
		id := rapid.SampledFrom([]string{"", a.anENI(true)}).Draw(a.rt, "which")
		a.did("late IMDS %q %s", id, by)
		a.cloud.lateMetadata(id, by)
	case "late EC2":
		by := time.Duration(rapid.SampledFrom([]int{0, 1, 5, 20}).Draw(a.rt, "seconds")) * time.Second
		a.did("late EC2 %s", by)
		a.cloud.lateDescribes(by)
	case "netlink":
		fails, late := rapid.IntRange(0, 4).Draw(a.rt, "questions to the kernel"), time.Duration(rapid.SampledFrom([]int{0, 1, 10, 40}).Draw(a.rt, "seconds"))*time.Second
		a.did("the kernel refuses %d questions, and shows links %s late", fails, late)
		a.badNetlink(fails, late)
	case "flaw":
		f := flaw{api: rapid.SampledFrom(a.apis).Draw(a.rt, "api"), kind: rapid.SampledFrom([]flawKind{refused, lost, lost, repeated}).Draw(a.rt, "kind"), times: rapid.IntRange(1, 3).Draw(a.rt, "times")}
		if f.kind == refused {
			f.code = rapid.SampledFrom(a.codes).Draw(a.rt, "code")
		}
		a.did("flaw %+v", f)
		a.cloud.fail(f)
	case "bring":
		a.did("bring: %v", a.cloud.bring()) // no slot is left at times
	case "take", "assign", "unassign":
		a.meddle(what)
	case "lose memory":
		a.lose()
	case "API": // goes away, or is back
		a.setAPI(a.noAPI())
		a.did("the API server is away: %t", a.noAPI())
		if a.noAPI() && rapid.IntRange(1, 5).Draw(a.rt, "for an hour: 5") == 5 {
			a.passBy(time.Hour, time.Minute)
			a.setAPI(true)
			a.did("an hour later it is back")
		}
	case "switch": // several interfaces, on or off
		if a.env["ENABLE_MULTI_NIC"] != "" {
			a.kill()
			a.env["ENABLE_MULTI_NIC"] = fmt.Sprint(a.env["ENABLE_MULTI_NIC"] == "false")
			a.did("ENABLE_MULTI_NIC=%s", a.env["ENABLE_MULTI_NIC"])
		}
	case "calm":
		a.did("%s", what)
		a.cloud.calm()
		a.setDisk(nil)
		a.badNetlink(0, 0)
	}
}

func (a *acts) many() {
	for _, p := range a.pods {
		if a.free(p) {
			a.did("add %s", a.add(p).id)
		}
	}
}

func (a *acts) allDel() {
	for _, p := range a.pods {
		if b := a.living(p); b != nil {
			a.did("del %s %v", b.id, b.addresses())
			a.del(b, true)
		}
	}
}

// nobodyKnows is how long the agent may go on to give what somebody else took away: until IMDS is believed to lack it.
const nobodyKnows = enis.MetadataLate + 2*refreshEvery

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (a *acts) meddle(what string) {
	id := a.anENI(what != "take")
	if id == "" {
		return
	}
	e := a.cloud.enis()[id]
	a.did("somebody's %s %s", what, id)
	until := time.Now().Add(nobodyKnows)
	switch what {
	case "take":
		for _, addr := range e.Addresses {
			a.told.Taken(single(addr), until)
		}
		for _, p := range append(slices.Clip(e.Prefixes), e.IPv6Prefixes...) {
			a.told.Taken(p, until)
		}
		if err := a.cloud.take(id); err != nil {
			a.rt.Fatalf("%v", err)
		}
	case "assign":
		_ = a.cloud.assign(id) // it is full at times
	case "unassign":
		if p := a.anIPv6Prefix(e); p.IsValid() {
			a.did("it is %s", p)
			a.told.Taken(p, until)
			if err := a.cloud.unassign(id, p); err != nil {
				a.rt.Fatalf("%v", err)
			}
		} else if len(e.Addresses) > 1 {
			addr := rapid.SampledFrom(e.Addresses[1:]).Draw(a.rt, "address")
			a.did("it is %s", addr)
			a.told.Taken(single(addr), until)
			if err := a.cloud.unassign(id, single(addr)); err != nil {
				a.rt.Fatalf("%v", err)
			}
		}
	}
}

// lose damages the agent's memory, while nothing is under way and IMDS shows things as they are.
func (a *acts) lose() {
	a.did("lose memory")
	a.cloud.calm()
	a.setDisk(nil)
	a.done()
	a.kill()
	time.Sleep(nobodyKnows)
	a.loseMemory()
}
