package ipamd

import (
	"testing"
)

// TestAnENIThatAnEarlierRunAttachedIsWaitedForAndNoOtherAttached: the agent is replaced between an attachment and the moment at
// which the metadata service shows it. Its successor sees the link alone, and must not take the ENI's device index.
func TestAnENIThatAnEarlierRunAttachedIsWaitedForAndNoOtherAttached(t *testing.T) {
	w := newWorld(t)
	var earlier *cloudENI
	w.cloud.do(func() {
		earlier = w.cloud.add(1, 9, false)
		earlier.late = true
	})
	s, _ := w.start()
	w.adds(s, 0, 1) // now one more ENI is wanted than is shown
	reads := 0
	w.cloud.do(func() { reads = w.cloud.reads })
	eventually(t, "the sources are read again and again", func() (ok bool) {
		w.cloud.do(func() { ok = w.cloud.reads > reads+2 })
		return ok
	})
	made := 0
	count := func() { made = w.cloud.next }
	if w.cloud.do(count); made != 2 {
		t.Fatalf("%d ENIs were made, want the primary and the earlier run's", made)
	}
	w.cloud.do(func() { earlier.late = false })
	w.adds(s, 1, 10) // more than the primary has
	eventually(t, "a third one is made now", func() bool { w.cloud.do(count); return made == 3 })
}
