package ipamd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/test/bench/cost/sim"
)

// slowCloud takes the time that the benchmark's EC2 takes, and counts what it is asked.
type slowCloud struct {
	*cloud
	mu    sync.Mutex
	calls map[string]int
}

func (c *slowCloud) take(call string) {
	c.mu.Lock()
	c.calls[call]++
	c.mu.Unlock()
	time.Sleep(sim.Takes(call))
}

func (c *slowCloud) AssignPrivateIpAddresses(ctx context.Context, in *ec2.AssignPrivateIpAddressesInput, o ...func(*ec2.Options)) (*ec2.AssignPrivateIpAddressesOutput, error) {
	c.take("AssignPrivateIpAddresses")
	return c.cloud.AssignPrivateIpAddresses(ctx, in, o...)
}

func (c *slowCloud) UnassignPrivateIpAddresses(ctx context.Context, in *ec2.UnassignPrivateIpAddressesInput, o ...func(*ec2.Options)) (*ec2.UnassignPrivateIpAddressesOutput, error) {
	c.take("UnassignPrivateIpAddresses")
	return c.cloud.UnassignPrivateIpAddresses(ctx, in, o...)
}

func (c *slowCloud) CreateNetworkInterface(ctx context.Context, in *ec2.CreateNetworkInterfaceInput, o ...func(*ec2.Options)) (*ec2.CreateNetworkInterfaceOutput, error) {
	c.take("CreateNetworkInterface")
	return c.cloud.CreateNetworkInterface(ctx, in, o...)
}

// AttachNetworkInterface: the link is there at once, the metadata service shows the ENI later.
func (c *slowCloud) AttachNetworkInterface(ctx context.Context, in *ec2.AttachNetworkInterfaceInput, o ...func(*ec2.Options)) (*ec2.AttachNetworkInterfaceOutput, error) {
	c.take("AttachNetworkInterface")
	id := *in.NetworkInterfaceId
	c.do(func() { c.enis[id].late = true })
	time.AfterFunc(sim.ShownAfter, func() { c.do(func() { c.enis[id].late = false }) })
	return c.cloud.AttachNetworkInterface(ctx, in, o...)
}

func (c *slowCloud) ModifyNetworkInterfaceAttribute(ctx context.Context, in *ec2.ModifyNetworkInterfaceAttributeInput, o ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error) {
	c.take("ModifyNetworkInterfaceAttribute")
	return c.cloud.ModifyNetworkInterfaceAttribute(ctx, in, o...)
}

func (c *slowCloud) DescribeNetworkInterfaces(ctx context.Context, in *ec2.DescribeNetworkInterfacesInput, o ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	c.take("DescribeNetworkInterfaces")
	return c.cloud.DescribeNetworkInterfaces(ctx, in, o...)
}

func (c *slowCloud) DescribeSubnets(ctx context.Context, in *ec2.DescribeSubnetsInput, o ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error) {
	c.take("DescribeSubnets")
	return c.cloud.DescribeSubnets(ctx, in, o...)
}

func (c *slowCloud) asked() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

// TestTheBenchmarkOfEC2CallsPlaysThisAgent: the whole agent, in virtual time, beside what test/bench/cost makes of its
// decisions. It takes the same calls and the same time, but for where a pod is between two counts.
func TestTheBenchmarkOfEC2CallsPlaysThisAgent(t *testing.T) {
	for _, c := range []struct {
		instance, setting string
		env               map[string]string
		pods              int
	}{
		{"m5.4xlarge", "WARM_ENI_TARGET=1", nil, 110},
		{"m5.4xlarge", "WARM_IP_TARGET=5", map[string]string{"WARM_IP_TARGET": "5"}, 110},
		{"m5.large", "prefixes, WARM_PREFIX_TARGET=1", map[string]string{"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}, 110},
	} {
		t.Run(c.instance+" "+c.setting, func(t *testing.T) {
			all := sim.Usual()
			setting, err := sim.NewSetting(c.instance, all[slices.IndexFunc(all, func(n sim.Named) bool { return n.Name == c.setting })])
			if err != nil {
				t.Fatal(err)
			}
			want := sim.Burst(setting, sim.NewOurs, c.pods, 10)
			synctest.Test(t, func(t *testing.T) {
				calls, last := playBurst(t, c.instance, c.env, c.pods)
				for name := range maps.Keys(mergedKeys(calls, want.Calls)) {
					if d := calls[name] - want.Calls[name]; d < -2 || d > 2 {
						t.Errorf("%s: %d calls by the agent, %d by the benchmark", name, calls[name], want.Calls[name])
					}
				}
				if d := last.Seconds() - want.LastSeconds; d < -5 || d > 5 { // the agent's pauses are jittered
					t.Errorf("the last pod has its address after %v by the agent, after %.1f s by the benchmark", last, want.LastSeconds)
				}
				t.Logf("the agent: %v, %v; the benchmark: %v, %.1f s", calls, last, want.Calls, want.LastSeconds)
			})
		})
	}
}

func mergedKeys(a, b map[string]int) map[string]int {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// virtual runs an agent in virtual time, with so many pods in the API server, until its pool has settled.
func virtual(t *testing.T, instance string, env map[string]string, pods int) (s service, slow *slowCloud, stop func()) {
	var objects []client.Object
	for i := range pods {
		objects = append(objects, pod(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i)))
	}
	w := newWorld(t, objects...)
	slow = &slowCloud{cloud: w.cloud, calls: map[string]int{}}
	w.typ, w.ec2 = instance, slow
	maps.Copy(w.env, env)
	w.virtual()
	s, stop = w.start()
	time.Sleep(5 * time.Minute)
	return s, slow, stop
}

// TestPodsThatComeAndGoEachMinuteCostNoCall: the whole agent keeps what the minute before needed, and lets go of it when no
// pods come any more.
func TestPodsThatComeAndGoEachMinuteCostNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const wave = 10
		s, slow, stop := virtual(t, "m5.4xlarge", map[string]string{"WARM_IP_TARGET": "5"}, 20*wave)
		var before map[string]int
		for minute := range 20 {
			if minute == 2 {
				before = slow.asked()
			}
			var wg sync.WaitGroup
			for i := minute * wave; i < (minute+1)*wave; i++ {
				wg.Go(func() {
					sandbox := fmt.Sprintf("c%d", i)
					if _, err := s.Add(t.Context(), addRequest(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), sandbox)); err != nil {
						t.Error(err)
					}
					time.Sleep(28 * time.Second)
					if _, err := s.Del(t.Context(), delRequest(sandbox)); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(time.Minute)
			wg.Wait()
		}
		after := slow.asked()
		delete(before, "DescribeSubnets")
		delete(after, "DescribeSubnets") // now and then, for their tags
		if !maps.Equal(before, after) {
			t.Errorf("calls after two waves %v, after twenty %v", before, after)
		}
		time.Sleep(10 * time.Minute)
		if n := len(slow.addressesOf("eni-1")); n != 5 {
			t.Errorf("%d addresses after ten quiet minutes, want 5", n)
		}
		stop()
	})
}

// playBurst has an agent serve so many pods, ten a second.
func playBurst(t *testing.T, instance string, env map[string]string, pods int) (calls map[string]int, last time.Duration) {
	s, slow, stop := virtual(t, instance, env, pods)
	before, began := slow.asked(), time.Now()
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			if _, err := s.Add(t.Context(), addRequest(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), fmt.Sprintf("c%d", i))); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(100 * time.Millisecond)
	}
	wg.Wait()
	last = time.Since(began)
	time.Sleep(10 * time.Minute)
	calls = slow.asked()
	for name, n := range before {
		if calls[name] -= n; calls[name] == 0 {
			delete(calls, name)
		}
	}
	stop()
	return calls, last
}
