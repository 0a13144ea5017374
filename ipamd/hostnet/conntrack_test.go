package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// anEntry is what Linux 6.18 told of a UDP connection of 10.1.0.2 to a Service that 10.1.2.2 answers, cut down to what is
// read of it.
var anEntry = []byte{
	unix.AF_INET, 0, 0, 0,
	0x18, 0, 1, 0x80, 0x14, 0, 1, 0x80, 8, 0, 1, 0, 10, 1, 0, 2, 8, 0, 2, 0, 10, 96, 0, 1,
	0x18, 0, 2, 0x80, 0x14, 0, 1, 0x80, 8, 0, 1, 0, 10, 1, 2, 2, 8, 0, 2, 0, 10, 1, 0, 2,
	8, 0, 12, 0, 1, 2, 3, 4,
	6, 0, 18, 0, 0, 7, 0, 0,
}

func TestATrackedConnectionIsRead(t *testing.T) {
	c, err := readConnection(anEntry)
	want := [2]netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.1.2.2")}
	if err != nil || c.sources != want || !slices.Equal(c.id, []byte{1, 2, 3, 4}) || !slices.Equal(c.zone, []byte{0, 7}) || len(c.tuple) != 20 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range [][]byte{nil, anEntry[:3], anEntry[:4], anEntry[:28], anEntry[4:]} {
		if c, err := readConnection(bad); err == nil {
			t.Errorf("%x was read as %+v", bad, c)
		}
	}
}

func FuzzReadConnection(f *testing.F) {
	f.Add(anEntry)
	f.Add(anEntry[:28])
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = readConnection(b) })
}
