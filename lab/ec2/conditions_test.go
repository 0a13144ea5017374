package ec2

import (
	"context"
	"net/url"
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	"github.com/branchline-cni/branchline/aws"
)

const ownerTag, controllersOwn = "eks:eni:owner", "eks-vpc-resource-controller"

// inline puts a policy into a new role and gives a client with its keys.
func (f *fixture) inline(name, document string) *ec2.Client {
	f.Helper()
	f.role(name)
	must(f.iam.PutRolePolicy(f.ctx, &iam.PutRolePolicyInput{RoleName: &name, PolicyName: ptr("inline"), PolicyDocument: &document}))(f)
	return f.as(name)
}

func tagList(kv ...string) []types.Tag {
	var tags []types.Tag
	for i := 0; i+1 < len(kv); i += 2 {
		tags = append(tags, types.Tag{Key: &kv[i], Value: &kv[i+1]})
	}
	return tags
}

func (f *fixture) creation(kv ...string) *ec2.CreateNetworkInterfaceInput {
	in := &ec2.CreateNetworkInterfaceInput{SubnetId: &f.subnet, Groups: []string{f.group}}
	if len(kv) > 0 {
		in.TagSpecifications = []types.TagSpecification{{ResourceType: "network-interface", Tags: tagList(kv...)}}
	}
	return in
}

// refused checks that the call is refused, and for want of which action.
func (f *fixture) refused(what string, err error, action string) {
	f.Helper()
	if got, _, _ := aws.Denied(err); got != action {
		f.Errorf("%s: error %v, want a refusal of %s", what, err, action)
	}
}

func TestConditionKeysAreThereOnlyWhereEC2HasThem(t *testing.T) {
	const arn = "arn:aws:ec2:us-west-2:111122223333:network-interface/eni-1"
	own := map[string]string{ownerTag: controllersOwn}
	for name, tc := range map[string]struct {
		condition string
		to        target
		want      decision
	}{
		"tag of the resource":                        {`{"StringEquals":{"aws:ResourceTag/eks:eni:owner":"eks-vpc-resource-controller"}}`, target{arn: arn, tags: own}, allowed},
		"the same under EC2's own name":              {`{"StringEquals":{"ec2:ResourceTag/eks:eni:owner":"eks-vpc-resource-controller"}}`, target{arn: arn, tags: own}, allowed},
		"tag of the resource, of another owner":      {`{"StringEquals":{"aws:ResourceTag/eks:eni:owner":"eks-vpc-resource-controller"}}`, target{arn: arn, tags: map[string]string{ownerTag: "me"}}, implicitDeny},
		"tag of the resource, not in its request":    {`{"StringEquals":{"aws:ResourceTag/eks:eni:owner":"eks-vpc-resource-controller"}}`, target{arn: arn, request: own}, implicitDeny},
		"tag of the resource, where there is none":   {`{"StringEquals":{"aws:ResourceTag/eks:eni:owner":"eks-vpc-resource-controller"}}`, target{arn: "*"}, implicitDeny},
		"tag in the request":                         {`{"StringEquals":{"aws:RequestTag/eks:eni:owner":"eks-vpc-resource-controller"}}`, target{arn: arn, request: own}, allowed},
		"tag in the request, not of the resource":    {`{"StringEquals":{"aws:RequestTag/eks:eni:owner":"eks-vpc-resource-controller"}}`, target{arn: arn, tags: own}, implicitDeny},
		"creating call":                              {`{"StringEquals":{"ec2:CreateAction":"CreateNetworkInterface"}}`, target{arn: arn, createAction: "CreateNetworkInterface"}, allowed},
		"another creating call":                      {`{"StringEquals":{"ec2:CreateAction":"CreateNetworkInterface"}}`, target{arn: arn, createAction: "RunInstances"}, implicitDeny},
		"no creating call":                           {`{"StringEquals":{"ec2:CreateAction":"CreateNetworkInterface"}}`, target{arn: arn}, implicitDeny},
		"no creating call, any would do":             {`{"StringLike":{"ec2:CreateAction":"*"}}`, target{arn: arn}, implicitDeny},
		"both keys of one operator, one of them met": {`{"StringEquals":{"ec2:CreateAction":"CreateNetworkInterface","aws:RequestTag/a":"b"}}`, target{arn: arn, createAction: "CreateNetworkInterface"}, implicitDeny},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := parsePolicy(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":` + tc.condition + `}}`)
			if err != nil {
				t.Fatal(err)
			}
			if got := decide([]*policy{p}, "ec2:CreateTags", tc.to); got != tc.want {
				t.Errorf("decision %v, want %v", got, tc.want)
			}
		})
	}
}

func TestUnknownConditionKeysAreRefused(t *testing.T) {
	for _, key := range []string{"ec2:CreateActions", "ec2:CreateAction/x", "aws:RequestTag/", "aws:TagKeys", "ec2:Vpc"} {
		if _, err := parsePolicy(`{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringEquals":{"` + key + `":"x"}}}}`); err == nil {
			t.Errorf("key %q was taken, and would be without effect", key)
		}
	}
}

func TestARequestsTagsCountForWhatItCreatesOnly(t *testing.T) {
	f := newFixture(t, Config{})
	client := f.inline("strict", `{"Statement":[
		{"Effect":"Allow","Action":["ec2:CreateNetworkInterface","ec2:CreateTags"],"Resource":"arn:aws:ec2:*:*:network-interface/*"},
		{"Effect":"Allow","Action":"ec2:CreateNetworkInterface","Resource":["arn:aws:ec2:*:*:subnet/*","arn:aws:ec2:*:*:security-group/*"],
		 "Condition":{"StringEquals":{"aws:RequestTag/a":"b"}}}]}`)
	_, err := client.CreateNetworkInterface(f.ctx, f.creation("a", "b"))
	f.refused("in a subnet that the request tags nothing of", err, "ec2:CreateNetworkInterface")
}

// The policy that users put into the controller's role lets it work on its own interfaces, and make none of others its own.
func TestTheControllersPolicyHoldsItToItsOwnInterfaces(t *testing.T) {
	document, err := os.ReadFile("../../config/vpc-controller/iam-policy.json")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, Config{})
	controller := f.inline("controller", string(document))

	kept := must(f.iam.GetRolePolicy(f.ctx, &iam.GetRolePolicyInput{RoleName: ptr("controller"), PolicyName: ptr("inline")}))(f)
	if got, err := url.PathUnescape(*kept.PolicyDocument); err != nil || got != string(document) {
		t.Errorf("the policy is given back as %q (%v)", got, err)
	}

	made, err := controller.CreateNetworkInterface(f.ctx, f.creation(ownerTag, controllersOwn, "more", "tags"))
	if err != nil {
		t.Fatalf("create a marked interface: %v", err)
	}
	mine := *made.NetworkInterface.NetworkInterfaceId
	_, err = controller.CreateNetworkInterface(f.ctx, f.creation())
	f.refused("create an interface without tags", err, "ec2:CreateNetworkInterface")
	_, err = controller.CreateNetworkInterface(f.ctx, f.creation(ownerTag, "amazon-vpc-cni"))
	f.refused("create an interface in another's name", err, "ec2:CreateNetworkInterface")

	other := f.eni("interface")
	tagged := func(id string) error {
		_, err := controller.CreateTags(f.ctx, &ec2.CreateTagsInput{Resources: []string{id}, Tags: tagList(ownerTag, controllersOwn)})
		return err
	}
	f.refused("mark another's interface as its own", tagged(other), "ec2:CreateTags")
	f.refused("tag its own interface later", tagged(mine), "ec2:CreateTags")

	for _, call := range []struct {
		action string
		run    func(context.Context, string) error
	}{
		{"ec2:CreateNetworkInterfacePermission", func(ctx context.Context, id string) error {
			_, err := controller.CreateNetworkInterfacePermission(ctx, &ec2.CreateNetworkInterfacePermissionInput{
				NetworkInterfaceId: &id, AwsAccountId: ptr("111122223333"), Permission: "INSTANCE-ATTACH"})
			return err
		}},
		{"ec2:ModifyNetworkInterfaceAttribute", func(ctx context.Context, id string) error {
			_, err := controller.ModifyNetworkInterfaceAttribute(ctx, &ec2.ModifyNetworkInterfaceAttributeInput{
				NetworkInterfaceId: &id, SourceDestCheck: &types.AttributeBooleanValue{Value: ptr(false)}})
			return err
		}},
		{"ec2:DeleteNetworkInterface", func(ctx context.Context, id string) error {
			_, err := controller.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id})
			return err
		}},
	} {
		f.refused(call.action+" on another's interface", call.run(f.ctx, other), call.action)
		if err := call.run(f.ctx, mine); err != nil {
			t.Errorf("%s on its own interface: %v", call.action, err)
		}
	}
	_, err = controller.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &mine})
	f.refused("delete an interface that is gone, and its tags with it", err, "ec2:DeleteNetworkInterface")
	_, err = controller.AttachNetworkInterface(f.ctx, &ec2.AttachNetworkInterfaceInput{NetworkInterfaceId: &other, InstanceId: &f.instance, DeviceIndex: ptr(int32(1))})
	f.refused("attach another's interface", err, "ec2:AttachNetworkInterface")
}
