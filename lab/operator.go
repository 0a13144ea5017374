package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeAWS writes the AWS CLI's wrapper for this lab. No real credential or profile is ever read: the wrapper starts
// from an empty environment, and an endpoint is always given, as the CLI would else call the real AWS.
func (l *Lab) writeAWS(keyID, secret string) error {
	env := []string{
		"PATH=/usr/bin:/bin", "HOME=" + l.opt.Dir, "LC_ALL=C.UTF-8",
		"AWS_ACCESS_KEY_ID=" + keyID, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_DEFAULT_REGION=" + Region,
		"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true",
		"AWS_PAGER=", "AWS_MAX_ATTEMPTS=2",
	}
	env = append(env, l.parts.awscli.Env()...)
	argv := append([]string{"exec", "env", "-i"}, quoteAll(env)...)
	argv = append(argv, quoteAll(l.parts.awscli.Argv("--endpoint-url", l.endpoint))...)
	script := "#!/bin/sh\n# The AWS CLI on the lab's cloud, with the keys of its administrator.\n" + strings.Join(argv, " ") + ` "$@"` + "\n"
	return writeScript(filepath.Join(l.BinDir(), "aws"), script)
}

func writeScript(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder of %s: %w", filepath.Base(path), err)
	}
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func quoteAll(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return out
}

// Usage tells a person what to do with a lab that is up.
func (l *Lab) Usage() string {
	permit := fmt.Sprintf("aws iam attach-role-policy --role-name %s --policy-arn %s", ClusterRole, ControllerPolicyARN)
	if l.opt.Controller == Deployment { // its policy is a part of its installation
		permit = "kubectl -n kube-system logs deployment/vpc-resource-controller"
	}
	kind := "cluster"
	if l.opt.IPv6 {
		kind = "IPv6 cluster"
	}
	return fmt.Sprintf(`The lab is up: an EC2 region with one %s, %d s after its start.

  export PATH=%s:$PATH      # kubectl and aws for this lab, and for this lab only

  kubectl get nodes -o wide
  aws ec2 describe-instances --query 'Reservations[].Instances[].[InstanceId,InstanceType,PrivateIpAddress]' --output table
  kubectl -n kube-system set env daemonset aws-node ENABLE_POD_ENI=true
  %s

The VPC is %s; the nodes' subnet %s; the nodes' group %s. Images on the nodes: %s, %s.
The image %s reads a table "welcome" of the PostgreSQL server in PGHOST; this lab has none of its own (the walk-through starts one).
Evidence (flow log, recordings of every port, the API's audit log): %s
Logs of every program: %s

Take it down with:

  go run ./cmd/vpclab down --dir %s
`, kind, int(sinceSeconds(l.began)), l.BinDir(), permit, l.Network.VPCID, l.Network.NodeSubnetID, l.Network.NodeGroupID,
		ClientImage, PauseImage, ClientImage, l.opt.EvidenceDir, filepath.Join(l.opt.Dir, "i"), l.opt.Dir)
}
