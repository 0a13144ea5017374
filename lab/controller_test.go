package lab

import (
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/config"
)

func TestTheShippedManifestGetsTheClustersNameAndEndpoint(t *testing.T) {
	b, err := controllerManifest(config.ControllerDeployment())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{name: CLUSTER_NAME, value: "lab"}`, `{name: AWS_EC2_ENDPOINT, value: "http://ec2.us-west-2.lab.internal"}`} {
		if strings.Count(string(b), want) != 1 {
			t.Errorf("want %s once in:\n%s", want, b)
		}
	}
	if _, err := controllerManifest([]byte("kind: Deployment\n")); err == nil || !strings.Contains(err.Error(), "CLUSTER_NAME") {
		t.Errorf("a manifest without the variable: %v", err)
	}
}

func TestControllerModesAreReadByName(t *testing.T) {
	for _, m := range []ControllerMode{Hosted, Deployment} {
		if got, err := ParseControllerMode(string(m)); got != m || err != nil {
			t.Errorf("%s: %q, %v", m, got, err)
		}
	}
	if _, err := ParseControllerMode("daemonset"); err == nil || !strings.Contains(err.Error(), "hosted or deployment") {
		t.Errorf("an unknown mode: %v", err)
	}
}
