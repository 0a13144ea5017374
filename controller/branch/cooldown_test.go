package branch

import (
	"strings"
	"testing"
	"time"
)

func TestTheCoolDownHasADefaultAndAFloor(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  time.Duration
		says  string // part of the error; empty: none
	}{
		{"60", time.Minute, ""}, {"30", 30 * time.Second, ""}, {" 300\n", 5 * time.Minute, ""}, {"2147483647", 2147483647 * time.Second, ""},
		{"29", 30 * time.Second, "29 s is too short"}, {"0", 30 * time.Second, "0 s is too short"},
		{"", time.Minute, `""`}, {"-5", time.Minute, `"-5"`}, {"60s", time.Minute, `"60s"`}, {"1e3", time.Minute, `"1e3"`}, {"4294967296", time.Minute, `"4294967296"`},
		{"99999999999999999999", time.Minute, "not a number"}, {strings.Repeat("x", 5000), time.Minute, "not a number"},
	} {
		got, err := parseCoolDown(tt.value)
		if got != tt.want || (err == nil) != (tt.says == "") || err != nil && (!strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), coolDownKey) || len(err.Error()) > 500) {
			t.Errorf("%.30q: %v, %v", tt.value, got, err)
		}
	}
}

func FuzzCoolDown(f *testing.F) {
	for _, s := range []string{"60", "", "-1", "0x10", "1_000", " 31 ", "９"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := parseCoolDown(value)
		if got < MinCoolDown || got%time.Second != 0 || err != nil && got != MinCoolDown && got != DefaultCoolDown {
			t.Fatalf("%q: %v, %v", value, got, err)
		}
	})
}
