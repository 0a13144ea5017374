package ec2

// managedPolicies are AWS's own policies that a cluster's roles carry, as AWS publishes them ("AWS managed policies for
// Amazon EKS"), cut down to the services of this lab. Neither allows AssociateTrunkInterface: on EKS the control plane
// calls it with AWS's own account, a self-managed control plane needs an inline policy.
var managedPolicies = map[string]string{
	"arn:aws:iam::aws:policy/AmazonEKSVPCResourceController": `{
		"Version": "2012-10-17",
		"Statement": [
			{"Effect": "Allow", "Action": "ec2:CreateNetworkInterfacePermission", "Resource": "*",
			 "Condition": {"ForAnyValue:StringEquals": {"ec2:ResourceTag/eks:eni:owner": "eks-vpc-resource-controller"}}},
			{"Effect": "Allow", "Resource": "*", "Action": [
				"ec2:CreateNetworkInterface", "ec2:DetachNetworkInterface", "ec2:ModifyNetworkInterfaceAttribute",
				"ec2:DeleteNetworkInterface", "ec2:AttachNetworkInterface", "ec2:UnassignPrivateIpAddresses",
				"ec2:AssignPrivateIpAddresses"]}
		]}`,
	"arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy": `{
		"Version": "2012-10-17",
		"Statement": [
			{"Sid": "AmazonEKSCNIPolicy", "Effect": "Allow", "Resource": "*", "Action": [
				"ec2:AssignPrivateIpAddresses", "ec2:AttachNetworkInterface", "ec2:CreateNetworkInterface",
				"ec2:DeleteNetworkInterface", "ec2:DescribeInstances", "ec2:DescribeTags", "ec2:DescribeNetworkInterfaces",
				"ec2:DescribeInstanceTypes", "ec2:DescribeSubnets", "ec2:DetachNetworkInterface",
				"ec2:ModifyNetworkInterfaceAttribute", "ec2:UnassignPrivateIpAddresses"]},
			{"Sid": "AmazonEKSCNIPolicyENITag", "Effect": "Allow", "Action": "ec2:CreateTags",
			 "Resource": "arn:aws:ec2:*:*:network-interface/*"}
		]}`,
	"arn:aws:iam::aws:policy/AmazonEKSClusterPolicy": `{
		"Version": "2012-10-17",
		"Statement": [
			{"Effect": "Allow", "Resource": "*", "Action": [
				"ec2:AuthorizeSecurityGroupIngress", "ec2:CreateSecurityGroup", "ec2:CreateTags", "ec2:DeleteSecurityGroup",
				"ec2:DescribeInstances", "ec2:DescribeNetworkInterfaces", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets",
				"ec2:DescribeVpcs", "ec2:RevokeSecurityGroupIngress", "ec2:DescribeInstanceTypes"]}
		]}`,
	"arn:aws:iam::aws:policy/AmazonEKSWorkerNodePolicy": `{
		"Version": "2012-10-17",
		"Statement": [
			{"Sid": "WorkerNodePermissions", "Effect": "Allow", "Resource": "*", "Action": [
				"ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeSecurityGroups", "ec2:DescribeSubnets",
				"ec2:DescribeVpcs"]}
		]}`,
}
