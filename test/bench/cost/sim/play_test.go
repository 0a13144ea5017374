package sim

import (
	"testing"
	"time"
)

// both plays one scenario with both agents, for each usual setting.
func both(t *testing.T, f func(t *testing.T, ours, todays Result), play func(Setting, Contender) Result) {
	for _, instance := range []string{"m5.large", "m5.4xlarge"} {
		for _, named := range Usual() {
			s, err := NewSetting(instance, named)
			if err != nil {
				t.Fatal(err)
			}
			t.Run(instance+" "+named.Name, func(t *testing.T) {
				ours, todays := play(s, NewOurs), play(s, NewTodays)
				t.Logf("ours %+v\ntoday's %+v", ours, todays)
				f(t, ours, todays)
			})
		}
	}
}

func TestABurstIsServedSoonerThanTodayWithFewerCalls(t *testing.T) {
	both(t, func(t *testing.T, ours, todays Result) {
		if ours.All > todays.All || ours.LastSeconds > todays.LastSeconds || ours.FailedADDs > 0 || ours.PeakENIs > todays.PeakENIs || ours.EndAddresses > todays.EndAddresses {
			t.Error("ours is worse")
		}
	}, func(s Setting, c Contender) Result { return Burst(s, c, min(110, s.Capacity()), 10) })
}

// TestSteadyChurnCostsAtMostACallForEachFourPods: and never more than today's agent by more than resting addresses cost,
// which that one counts as available and lets pods fail for.
func TestSteadyChurnCostsAtMostACallForEachFourPods(t *testing.T) {
	both(t, func(t *testing.T, ours, todays Result) {
		if ours.PerPod > 0.25 || ours.PerPod > todays.PerPod+0.04 || ours.FailedADDs > todays.FailedADDs {
			t.Error("ours is worse")
		}
	}, func(s Setting, c Contender) Result { return Churn(s, c, 5, 10, time.Minute, time.Hour) })
}

// TestWavesOfPodsCostNothing: what the last minute's pods had the next minute's get.
func TestWavesOfPodsCostNothing(t *testing.T) {
	both(t, func(t *testing.T, ours, _ Result) {
		if ours.Mutating > 0 || ours.FailedADDs > 0 || ours.WorstSeconds > 0 {
			t.Error("something was asked for, or waited for")
		}
	}, func(s Setting, c Contender) Result { return Waves(s, c, 5, 10, 30*time.Second, 20*time.Minute) })
}

// TestWhatIsKeptSavesCallsForAFewAddresses: which is what BRANCHLINE_KEEP_SURPLUS is for.
func TestWhatIsKeptSavesCallsForAFewAddresses(t *testing.T) {
	for _, named := range Usual() {
		s, err := NewSetting("m5.4xlarge", named)
		if err != nil {
			t.Fatal(err)
		}
		kept, nothing := Churn(s, NewOurs, 5, 10, time.Minute, time.Hour), Churn(s, NewOursKeepingNothing, 5, 10, time.Minute, time.Hour)
		if kept.PerPod > nothing.PerPod || kept.MeanIdle > nothing.MeanIdle+5 || nothing.MeanIdle > kept.MeanIdle {
			t.Errorf("%s: %+v, and where nothing is kept %+v", named.Name, kept, nothing)
		}
	}
}
