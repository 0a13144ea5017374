// Package ec2 is one AWS region in memory: the parts of the EC2, IAM and STS Query APIs that a VPC with instances, ENIs,
// trunk and branch ENIs, security groups and roles needs, on one http.Handler. Official clients (the AWS SDKs, the AWS
// CLI) work against it unchanged: signatures are verified, and each call is authorised by the policies of its caller's role.
//
// It holds the state and says what changed; it moves no packet and runs no machine. Config.OnChange tells the data plane
// (lab/vpc), Config.Instances makes machines and NICs real (lab/instance), Metadata feeds lab/imds.
//
// What it leaves out it refuses: a parameter, filter or policy condition that it doesn't know is an error and never
// ignored. Not modelled in this version: windows of eventual consistency (a describe call sees every earlier effect),
// IPv6-only subnets, volumes, images, key pairs, public addresses, route tables.
package ec2
