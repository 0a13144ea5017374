//go:build lab

package ec2

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/lab/artifacts"
)

// cli runs the AWS CLI against the region with keys of the lab only, never those of whoever runs the test.
func (f *fixture) cli(args ...string) (stdout, stderr string, err error) {
	f.Helper()
	cache, openErr := artifacts.Open()
	if openErr != nil {
		f.Fatal(openErr)
	}
	aws, unpackErr := cache.AWSCLI(f.ctx)
	if unpackErr != nil {
		f.Fatal(unpackErr)
	}
	argv := aws.Argv(append([]string{"--endpoint-url", f.url, "--output", "json"}, args...)...)
	key, secret := f.region.AdminCredentials()
	cmd := exec.CommandContext(f.ctx, argv[0], argv[1:]...)
	cmd.Env = append(aws.Env(),
		"PATH="+os.Getenv("PATH"), "HOME="+f.TempDir(), "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_EC2_METADATA_DISABLED=true", "AWS_DEFAULT_REGION=us-west-2", "AWS_PAGER=", "AWS_MAX_ATTEMPTS=1",
		"AWS_ACCESS_KEY_ID="+key, "AWS_SECRET_ACCESS_KEY="+secret)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	return out.String(), errOut.String(), err
}

func (f *fixture) cliJSON(into any, args ...string) {
	f.Helper()
	out, errOut, err := f.cli(args...)
	if err != nil {
		f.Fatalf("aws %s: %v\n%s", strings.Join(args, " "), err, errOut)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		f.Fatalf("aws %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

func TestTheAWSCLIWorksUnchanged(t *testing.T) {
	f := newFixture(t, Config{})
	trunk, branch := f.trunk(), f.eni("interface")
	var assoc struct {
		InterfaceAssociation struct{ AssociationId string }
	}
	f.cliJSON(&assoc, "ec2", "associate-trunk-interface", "--branch-interface-id", branch, "--trunk-interface-id", trunk, "--vlan-id", "7")
	if assoc.InterfaceAssociation.AssociationId == "" {
		t.Error("no association id")
	}
	if _, errOut, err := f.cli("ec2", "associate-trunk-interface", "--branch-interface-id", f.eni("interface"), "--trunk-interface-id", trunk, "--vlan-id", "7"); err == nil ||
		!strings.Contains(errOut, "(InvalidVlanId.Duplicate)") {
		t.Errorf("a second VLAN 7: %v, %s", err, errOut)
	}
	var enis struct {
		NetworkInterfaces []struct {
			NetworkInterfaceId, InterfaceType, Status string
			Groups                                    []struct{ GroupId, GroupName string }
		}
	}
	f.cliJSON(&enis, "ec2", "describe-network-interfaces", "--filters", "Name=interface-type,Values=branch,trunk")
	if len(enis.NetworkInterfaces) != 2 || enis.NetworkInterfaces[0].Groups[0].GroupName != "POD_SG" {
		t.Errorf("%+v", enis)
	}
	var rules struct {
		SecurityGroupRules []struct{ SecurityGroupRuleId string }
	}
	f.cliJSON(&rules, "ec2", "authorize-security-group-ingress", "--group-id", f.group, "--protocol", "tcp", "--port", "5432", "--cidr", "192.168.0.0/16")
	if len(rules.SecurityGroupRules) != 1 {
		t.Errorf("%+v", rules)
	}
	var inst struct {
		Reservations []struct {
			Instances []struct {
				InstanceId        string
				NetworkInterfaces []struct{ InterfaceType string }
			}
		}
	}
	f.cliJSON(&inst, "ec2", "describe-instances", "--instance-ids", f.instance)
	if n := inst.Reservations[0].Instances[0].NetworkInterfaces; len(n) != 2 {
		t.Errorf("%+v", inst)
	}
	var policies struct{ AttachedPolicies []struct{ PolicyName string } }
	f.cliJSON(&policies, "iam", "list-attached-role-policies", "--role-name", "node")
	if len(policies.AttachedPolicies) != 1 || policies.AttachedPolicies[0].PolicyName != "AmazonEKS_CNI_Policy" {
		t.Errorf("%+v", policies)
	}
	var role struct {
		Role struct{ AssumeRolePolicyDocument map[string]any }
	}
	f.cliJSON(&role, "iam", "get-role", "--role-name", "node")
	if role.Role.AssumeRolePolicyDocument["Version"] != "2012-10-17" {
		t.Errorf("%+v", role)
	}
	var who struct{ Account string }
	f.cliJSON(&who, "sts", "get-caller-identity")
	if who.Account != "111122223333" {
		t.Errorf("%+v", who)
	}
}
