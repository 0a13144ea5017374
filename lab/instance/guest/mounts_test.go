package guest

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestOnlyHiddenPathsArePutBack(t *testing.T) {
	mask := []string{"/root", "/tmp", "/etc/shadow"}
	keep := []string{"/root/.cache/branchline", "/root/.cache/branchline/kernel", "/usr/bin", "/tmp/x/", "/tmpfile", "/rootkit"}
	want := []string{"/root/.cache/branchline", "/tmp/x"}
	if got := keepsBeneath(mask, keep); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestOutermostPathsCoverAllAndNotEachOther(t *testing.T) {
	path := rapid.Custom(func(t *rapid.T) string {
		return "/" + strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab"}), 1, 4).Draw(t, "parts"), "/")
	})
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.SliceOf(path).Draw(t, "paths")
		out := outermost(in)
		for _, p := range in {
			if !slices.ContainsFunc(out, func(o string) bool { return under(p, o) }) {
				t.Fatalf("%s of %v is not under any of %v", p, in, out)
			}
		}
		for i, a := range out {
			for j, b := range out {
				if i != j && under(a, b) {
					t.Fatalf("%s lies under %s in %v", a, b, out)
				}
			}
		}
	})
}

const mountinfo = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:21 / /proc rw,nosuid shared:5 - proc proc rw
24 22 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
25 22 8:1 / /srv/with\040blank rw,relatime - xfs /dev/sdb1 rw
26 25 8:2 / /srv/with\040blank/inner rw - ext4 /dev/sdb2 rw
27 22 0:30 / /mnt/ram rw - tmpfs tmpfs rw
`

func TestMountInfo(t *testing.T) {
	m, err := parseMountInfo(mountinfo)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := m[3], (mountInfo{Path: "/srv/with blank", FSType: "xfs", Options: "rw"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := carried(m); !slices.Equal(got, []string{"/srv/with blank"}) {
		t.Errorf("an instance must show %v", got)
	}
	if got := cgroupOptions(m[2].Options); got != "cpu,cpuacct" {
		t.Errorf("options to mount the hierarchy again: %q", got)
	}
	if _, err := parseMountInfo("no mount\n"); err == nil {
		t.Error("a line without fields was accepted")
	}
}

func FuzzParseMountInfo(f *testing.F) {
	f.Add(mountinfo)
	f.Add(`1 1 0:0 / /\9\04\ rw - x y`)
	f.Fuzz(func(t *testing.T, s string) { parseMountInfo(s) })
}
