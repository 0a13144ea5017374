package trunk

import (
	"errors"
	"testing"
	"time"
)

func TestASubnetsIPv6RangeIsAskedForOnceInAWhileHoweverManyNodesWantToKnow(t *testing.T) {
	const age = 30 * time.Minute
	var r ranges
	calls := 0
	answer, failure := "", error(nil)
	start := time.Now()
	of := func(after time.Duration, subnet string) (string, error) {
		return r.of(subnet, start.Add(after), age, func() (string, error) {
			calls++
			return answer, failure
		})
	}
	for _, c := range []struct {
		after   time.Duration
		subnet  string
		answer  string // of EC2, were it asked
		failure error
		want    string
		calls   int // in all
	}{
		{0, "a", "", nil, "", 1},
		{age - 1, "a", "2600::/64", nil, "", 1},
		{age - 1, "b", "2600::/64", nil, "2600::/64", 2},
		{age, "a", "2600::/64", nil, "2600::/64", 3},
		{age + 1, "a", "", nil, "2600::/64", 3},
		{age, "c", "", errors.New("denied"), "", 4},
		{2*age - 1, "c", "2600::/64", nil, "", 4},
		{2 * age, "c", "2600::/64", nil, "2600::/64", 5},
	} {
		answer, failure = c.answer, c.failure
		asked := calls
		got, err := of(c.after, c.subnet)
		if got != c.want || calls != c.calls || (err != nil) != (c.failure != nil && calls > asked) {
			t.Errorf("%s after %s: %q, %v with %d calls; want %q with %d", c.subnet, c.after, got, err, calls, c.want, c.calls)
		}
	}
}

// TestASubnetOfWhichEC2DoesNotAnswerHoldsNoOtherUp: each is asked for by itself.
func TestASubnetOfWhichEC2DoesNotAnswerHoldsNoOtherUp(t *testing.T) {
	var r ranges
	asked, answered, done := make(chan bool), make(chan bool), make(chan error)
	go func() {
		_, err := r.of("a", time.Now(), time.Hour, func() (string, error) {
			close(asked)
			<-answered
			return "", nil
		})
		done <- err
	}()
	<-asked
	if got, err := r.of("b", time.Now(), time.Hour, func() (string, error) { return "2600::/64", nil }); got != "2600::/64" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	close(answered)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
