package eni

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/plugins/datapath"
)

func TestValidAttachmentsOfEitherKey(t *testing.T) {
	for text, want := range map[string]struct {
		n    int
		said bool
		bad  bool
	}{
		`{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`: {n: 1, said: true},
		`{"cni.dev/attachments":[{"containerID":"a","ifname":"eth0"}]}`:       {n: 1, said: true},
		`{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"cni.dev/attachments":[{"containerID":"b","ifname":"eth0"},{"containerID":"a","ifname":"eth0"}]}`: {n: 2, said: true},
		`{"cni.dev/valid-attachments":[]}`:   {said: true},
		`{"cni.dev/valid-attachments":null}`: {said: true},
		`{}`:                                 {},
		`{"cni.dev/valid-attachments":"a"}`:  {bad: true},
		`{"cni.dev/valid-attachments":[{"containerID":"a"}]}`: {bad: true},
		`{"cni.dev/attachments":[{"ifname":"eth0"}]}`:         {bad: true},
		`nonsense`:                             {bad: true},
		`{"cni.dev/valid-attachments":[null]}`: {bad: true},
		`{"cni.dev/valid-attachments":{"containerID":"a"}}`: {bad: true},
	} {
		valid, said, err := parseAttachments([]byte(text))
		if len(valid) != want.n || said != want.said || (err != nil) != want.bad {
			t.Errorf("%s: %v, %t, %v", text, valid, said, err)
		}
	}
}

func TestSTATUSGivesAnAgentThatIsAwayItsGrace(t *testing.T) {
	if err := unavailable("away", statusGrace, nil); err != nil {
		t.Errorf("within the grace: %v", err)
	}
	for name, err := range map[string]error{
		"past it": unavailable("away", statusGrace+time.Second, nil), "never ready": unavailable("away", 0, fs.ErrNotExist),
	} {
		var e *types.Error
		if !errors.As(err, &e) || e.Code != CodeNotAvailable || !strings.HasPrefix(e.Msg, "away; ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAFailingSTATUSIsAnErrorInTheLogOnceAndThenEveryFewMinutes(t *testing.T) {
	o := &operation{config: Config{Socket: filepath.Join(t.TempDir(), "ipamd.sock")}}
	now := time.Now()
	away := func(age time.Duration) error { return unavailable("the agent is away", age, nil) }
	broken := func(since string) error {
		return types.NewError(CodeLimited, "no routing for "+since, "")
	}
	for i, step := range []struct {
		after time.Duration
		err   error
		news  bool
	}{
		{0, nil, false},
		{0, away(6 * time.Minute), true},
		{5 * time.Second, away(6*time.Minute + 5*time.Second), false},
		{10 * time.Second, broken("2m59s"), true},
		{15 * time.Second, broken("3m4s"), false},
		{20 * time.Second, away(7 * time.Minute), true},
		{sayStatusEvery + 30*time.Second, away(12 * time.Minute), true},
		{-time.Hour, away(12 * time.Minute), true}, // the clock was set
		{time.Second, nil, true},
		{2 * time.Second, nil, false},
	} {
		if got := o.sayStatus(step.err, now.Add(step.after)); got != step.news {
			t.Errorf("step %d, %v: news is %t", i, step.err, got)
		}
	}
	unwritable := &operation{config: Config{Socket: filepath.Join(t.TempDir(), "missing", "ipamd.sock")}}
	for _, o := range []*operation{unwritable, {}} {
		for range 2 {
			if !o.sayStatus(away(time.Hour), now) {
				t.Error("a failure is hidden although nothing says that it was told")
			}
		}
	}
}

func FuzzValidAttachments(f *testing.F) {
	f.Add([]byte(`{"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}],"cni.dev/attachments":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		valid, said, err := parseAttachments(text)
		if len(valid) > 0 && (!said || err != nil) {
			t.Errorf("%v, %t, %v", valid, said, err)
		}
		keep := datapath.Valid(valid)
		for _, o := range valid {
			if o.ContainerID == "" || o.IfName == "" || len(o.ContainerID) < 128 && !keep(o) {
				t.Errorf("%q is not kept", o)
			}
		}
	})
}

func TestUpstreamsResultIsKnownByItsDummy(t *testing.T) {
	for text, want := range map[string]*datapath.Upstream{
		`{"interfaces":[{"name":"eniaa"},{"name":"eth0","mac":"2","sandbox":"/ns"},{"name":"dummy0123456789a","mac":"0","sandbox":"1"}],"ips":[{"address":"10.0.0.1/32"}]}`: {HostVeth: "eniaa", VLAN: 0, Table: 2},
		`{"interfaces":[{"name":"vlanaa"},{"name":"eth0","mac":"107","sandbox":"/ns"},{"name":"dummy0123456789a","mac":"7"}],"ips":[{"address":"10.0.0.1/32"}]}`:            {HostVeth: "vlanaa", VLAN: 7, Table: 107},
		`{"interfaces":[{"name":"eniaa"},{"name":"eth0","sandbox":"/ns"},{"name":"dummy0123456789a","mac":"0","sandbox":"0"}],"ips":[{"address":"2001:db8::1/128"}]}`:       {HostVeth: "eniaa"},
		`{"interfaces":[{"name":"eniaa","mac":"02:00:00:00:00:01"},{"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/ns"}],"ips":[{"address":"10.0.0.1/32"}]}`:           nil,
		`{"interfaces":[{"name":"eniaa"},{"name":"eth0","mac":"2","sandbox":"/ns"},{"name":"dummy0","mac":"02:00:00:00:00:02"}],"ips":[{"address":"10.0.0.1/32"}]}`:         nil,
		`{"interfaces":[{"name":"eniaa"},{"name":"dummy0","mac":"121"}],"ips":[{"address":"10.0.0.1/32"}]}`:                                                                 nil,
		`{"interfaces":[{"name":"eniaa","mac":7,"mtu":"x"},{"name":"dummy0","mac":"7"}],"ips":[]}`:                                                                          nil,
	} {
		p, err := parsePrevious([]byte(text), "eth0")
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got := p.upstream
		if (got == nil) != (want == nil) || got != nil && (got.HostVeth != want.HostVeth || got.VLAN != want.VLAN || got.Table != want.Table || !got.Address.IsValid() || got.IfName != "eth0") {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}
