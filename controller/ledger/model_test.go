package ledger

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	v1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

const rest = time.Minute

// model is the world beside the ledger: what is still wired on the node, what its agent confirmed, and when each VLAN id
// was given back.
type model struct {
	s         v1.BranchLedgerSpec
	now       time.Time
	n         int
	live      map[types.UID]bool      // pods that have not ended
	shown     map[types.UID]bool      // pods that the node may have wired
	released  map[types.UID]time.Time // the node's confirmations, by when the ledger took note
	known     map[int32]bool
	abandoned bool // nobody on the node asks for branch ENIs, and EC2 has nothing wired
	gone      bool
}

// Whatever the order of events: a VLAN id has one pod and a pod one VLAN id; no slot is lost; nothing that a node was
// shown is freed without its confirmation and the cool-down, or all the evidence and twice the cool-down, or the end of
// the instance; the oldest freed VLAN id is given first.
func TestLedgerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{
			s:   v1.BranchLedgerSpec{Capacity: int32(rapid.IntRange(1, 5).Draw(t, "capacity"))},
			now: time.Unix(1000, 0), live: map[types.UID]bool{}, shown: map[types.UID]bool{}, released: map[types.UID]time.Time{}, known: map[int32]bool{},
		}
		slotIn := func(t *rapid.T, states ...v1.SlotState) *v1.Slot {
			var in []int
			for i := range m.s.Slots {
				for _, st := range states {
					if m.s.Slots[i].State == st {
						in = append(in, i)
					}
				}
			}
			if len(in) == 0 {
				t.Skip()
			}
			return &m.s.Slots[rapid.SampledFrom(in).Draw(t, "slot")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"pass": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 100).Draw(t, "seconds")) * time.Second)
			},
			"assign": func(t *rapid.T) {
				m.n++
				uid := types.UID(fmt.Sprint("pod-", m.n))
				want := int32(0)
				for i := range m.s.Slots {
					if c := &m.s.Slots[i]; c.State == v1.Free && (want == 0 || c.Since.Time.Before(Slot(&m.s, want).Since.Time)) {
						want = c.VLANID
					}
				}
				if len(m.s.Slots) < v1.MaxVLANID {
					want = int32(len(m.s.Slots)) + 1
				}
				full := Used(&m.s) >= int(m.s.Capacity)
				vlan, err := Assign(&m.s, Pod{UID: uid, Name: string(uid)}, []string{"sg-1"}, string(uid), m.now)
				if full != errors.Is(err, ErrFull) || err == nil && vlan != want {
					t.Fatalf("VLAN id %d, %v; want %d, full %v", vlan, err, want, full)
				}
				if err == nil {
					m.live[uid] = true
				}
			},
			"bind": func(t *rapid.T) {
				s := slotIn(t, v1.Creating)
				if err := Made(&m.s, s.VLANID, s.Claim, ENI{ID: "eni-" + s.Claim}); err != nil {
					t.Fatal(err)
				}
				if err := Bind(&m.s, s.VLANID, s.PodUID, "assoc", m.now); err != nil {
					t.Fatal(err)
				}
				m.shown[s.PodUID] = true
			},
			"occupied": func(t *rapid.T) {
				s := slotIn(t, v1.Creating)
				if err := Occupy(&m.s, s.VLANID, s.PodUID, "eni-foreign", "assoc-foreign", m.now); err != nil {
					t.Fatal(err)
				}
			},
			"end": func(t *rapid.T) {
				s := slotIn(t, v1.Creating, v1.Bound)
				delete(m.live, s.PodUID)
				End(&m.s, s.PodUID, m.now)
			},
			"confirm": func(t *rapid.T) {
				s := slotIn(t, v1.Bound, v1.Releasing, v1.Cooling)
				state, uid := s.State, s.PodUID
				if changed := Confirm(&m.s, []v1.Released{{PodUID: uid}, {PodUID: "unknown"}}, m.now); changed != (state == v1.Releasing) {
					t.Fatalf("confirmation of a %s slot: changed %v", state, changed)
				} else if changed {
					m.released[uid] = m.now
				}
			},
			"abandon": func(*rapid.T) { m.abandoned = !m.abandoned },
			"reclaim": func(t *rapid.T) {
				s := slotIn(t, v1.Releasing)
				e := Evidence{PodEnded: true, AgentGone: m.abandoned || rapid.Bool().Draw(t, "no feature"), Unwired: m.abandoned}
				since, uid := s.Since.Time, s.PodUID
				if Reclaim(&m.s, s.VLANID, e, m.now, rest) {
					if !m.abandoned || m.now.Sub(since) < 2*rest {
						t.Fatal("reclaimed without evidence or before twice the cool-down")
					}
					m.released[uid] = m.now.Add(-rest)
				}
			},
			"cool":    func(*rapid.T) { Cool(&m.s, m.now, rest) },
			"vacated": func(t *rapid.T) { Vacated(&m.s, slotIn(t, v1.Occupied).VLANID, m.now, rest) },
			"free": func(t *rapid.T) {
				s := slotIn(t, v1.Deleting)
				if uid := s.PodUID; m.shown[uid] && !m.gone {
					if at, ok := m.released[uid]; !ok || m.now.Sub(at) < rest {
						t.Fatalf("freed %v after %v", s, m.now.Sub(at))
					}
				}
				if m.live[s.PodUID] {
					t.Fatalf("freed under a live pod: %+v", s)
				}
				if err := Free(&m.s, s.VLANID, m.now); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				pods, vlans := map[types.UID]bool{}, map[int32]bool{}
				for _, s := range m.s.Slots {
					if vlans[s.VLANID] || s.VLANID < v1.MinVLANID || s.VLANID > v1.MaxVLANID || s.PodUID != "" && pods[s.PodUID] {
						t.Fatalf("twice, or out of range: %+v", s)
					}
					if s.State == v1.Free && (s.PodUID != "" || s.ENIID != "") {
						t.Fatalf("free, but with something: %+v", s)
					}
					pods[s.PodUID], vlans[s.VLANID] = true, true
					m.known[s.VLANID] = true
				}
				if len(m.known) != len(m.s.Slots) {
					t.Fatalf("slots were lost: %d of %d", len(m.s.Slots), len(m.known))
				}
				if Used(&m.s) > int(m.s.Capacity) {
					t.Fatalf("%d in use of %d", Used(&m.s), m.s.Capacity)
				}
			},
		})
	})
}

func TestWithEveryVLANIDGivenTheOldestFreedComesFirst(t *testing.T) {
	s := v1.BranchLedgerSpec{Capacity: 200}
	now := time.Unix(1000, 0)
	for i := range v1.MaxVLANID {
		if _, err := Assign(&s, Pod{UID: types.UID(fmt.Sprint(i))}, nil, "c", now); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Assign(&s, Pod{UID: "more"}, nil, "c", now); !errors.Is(err, ErrFull) {
		t.Fatalf("a 121st VLAN id: %v", err)
	}
	for i, vlan := range []int32{70, 3, 119} {
		End(&s, Slot(&s, vlan).PodUID, now)
		if err := Free(&s, vlan, now.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []int32{70, 3, 119} {
		if got, err := Assign(&s, Pod{UID: types.UID(fmt.Sprint("new", i))}, nil, "c", now); err != nil || got != want {
			t.Fatalf("%d, %v; want %d", got, err, want)
		}
	}
}

func TestGoneSendsEverythingAway(t *testing.T) {
	s := v1.BranchLedgerSpec{Capacity: 9, Slots: []v1.Slot{{VLANID: 1, State: v1.Bound}, {VLANID: 2, State: v1.Free}, {VLANID: 3, State: v1.Occupied}}}
	if !Gone(&s, time.Unix(1, 0)) || s.Slots[0].State != v1.Deleting || s.Slots[1].State != v1.Free || s.Slots[2].State != v1.Deleting {
		t.Fatalf("%+v", s.Slots)
	}
	if Gone(&s, time.Unix(2, 0)) {
		t.Fatal("changed again")
	}
}
