package ipamd

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// An m5.large has three ENIs of nine addresses for pods each.
func TestTheMostAddressesDoNotCountAPrimaryENIThatGivesNone(t *testing.T) {
	for custom, want := range map[string]float64{"false": 27, "true": 18} {
		w := newWorld(t, eniConfig("default", "subnet-pods"))
		w.cloud.subnets = []types.Subnet{subnet("subnet-1", 100), subnet("subnet-pods", 100)}
		w.env["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"] = custom
		s, kill := w.start()
		eventually(t, "ready", s.a.ready.Load)
		for _, g := range gauges {
			if strings.Contains(g.desc.String(), `"awscni_ip_max"`) {
				if got := g.value(s.a.sizes()); got != want {
					t.Errorf("custom networking %s: awscni_ip_max is %v, want %v", custom, got, want)
				}
				want = 0
			}
		}
		if want != 0 {
			t.Error("there is no awscni_ip_max")
		}
		kill()
	}
}
