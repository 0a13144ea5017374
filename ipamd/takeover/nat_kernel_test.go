//go:build kernel

package takeover

import (
	"context"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// upstreamRules are what upstream's agent makes by iptables, as its log shows them, with the chains of SNAT that older
// releases had.
var upstreamRules = []string{
	"-t nat -N AWS-SNAT-CHAIN-0",
	"-t nat -N AWS-SNAT-CHAIN-1",
	"-t nat -A POSTROUTING -m comment --comment|AWS SNAT CHAIN|-j AWS-SNAT-CHAIN-0",
	"-t nat -A AWS-SNAT-CHAIN-0 ! -d 10.0.0.0/16 -m comment --comment|AWS SNAT CHAIN|-j AWS-SNAT-CHAIN-1",
	"-t nat -A AWS-SNAT-CHAIN-1 ! -o vlan+ -m comment --comment|AWS, SNAT|-m addrtype ! --dst-type LOCAL -j SNAT --to-source 10.0.1.205 --random-fully",
	"-t nat -N AWS-CONNMARK-CHAIN-0",
	"-t nat -A PREROUTING -i eni+ -m comment --comment|AWS, outbound connections|-j AWS-CONNMARK-CHAIN-0",
	"-t nat -A AWS-CONNMARK-CHAIN-0 -d 10.0.0.0/16 -m comment --comment|AWS CONNMARK CHAIN, VPC CIDR|-j RETURN",
	"-t nat -A AWS-CONNMARK-CHAIN-0 -m comment --comment|AWS, CONNMARK|-j CONNMARK --set-xmark 0x80/0x80",
	"-t nat -A PREROUTING -m comment --comment|AWS, CONNMARK|-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
	"-t mangle -A PREROUTING -i eth0 -m comment --comment|AWS, primary ENI|-m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80",
	"-t mangle -A PREROUTING -i eni+ -m comment --comment|AWS, primary ENI|-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
	"-t mangle -A PREROUTING -i vlan+ -m comment --comment|AWS, primary ENI|-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80",
}

var othersRules = []string{
	"-t nat -N KUBE-SERVICES",
	"-t nat -A PREROUTING -m comment --comment|kubernetes service portals|-j KUBE-SERVICES",
	"-t nat -A KUBE-SERVICES -d 172.20.0.10/32 -p udp --dport 53 -j DNAT --to-destination 10.0.3.3:53",
	"-t nat -A POSTROUTING -s 10.99.0.0/16 -m comment --comment|AWS SNAT CHAINS are not ours|-j MASQUERADE",
	"-t mangle -A PREROUTING -i eth0 -m comment --comment|of the node's owner|-j MARK --set-xmark 0x100/0x100",
	"-t filter -A FORWARD -m comment --comment|AWS, primary ENI|-j ACCEPT",
}

func iptables(t *testing.T, ns *nstest.NS, stdin, command string, args ...string) (out string) {
	t.Helper()
	ns.Do(t, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, command, args...)
		cmd.Stdin = strings.NewReader(stdin)
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s %q: %s\n%s", command, args, b, stdin)
		}
		out = string(b)
		return err
	})
	return out
}

// apply makes the rules in one run of iptables, which takes its time in the virtual machine.
func apply(t *testing.T, ns *nstest.NS, rules []string) {
	t.Helper()
	applyBy(t, ns, "iptables-nft-restore", rules)
}

func applyBy(t *testing.T, ns *nstest.NS, restore string, rules []string) {
	t.Helper()
	byTable := map[string]string{}
	for _, r := range rules {
		table, rule, _ := strings.Cut(strings.TrimPrefix(r, "-t "), " ")
		byTable[table] += strings.Replace(strings.Replace(rule, "|", ` "`, 1), "|", `" `, 1) + "\n"
	}
	var all strings.Builder
	for table, lines := range byTable {
		all.WriteString("*" + table + "\n" + lines + "COMMIT\n")
	}
	iptables(t, ns, all.String(), restore, "--noflush")
}

// saved is iptables-save without counters and without what says when.
func saved(t *testing.T, ns *nstest.NS) []string { return savedBy(t, ns, "iptables-nft-save") }

func savedBy(t *testing.T, ns *nstest.NS, save string) (out []string) {
	for line := range strings.Lines(iptables(t, ns, "", save)) {
		if !strings.HasPrefix(line, "#") {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
			out = append(out, line)
		}
	}
	return out
}

func remove(t *testing.T, ns *nstest.NS) (removed, left []string) {
	t.Helper()
	ns.Do(t, func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		removed, left, err = RemoveNAT(ctx)
		return err
	})
	return removed, left
}

func TestUpstreamsRulesGoAndNobodyElses(t *testing.T) {
	want := nstest.New(t)
	apply(t, want, othersRules)
	node := nstest.New(t)
	apply(t, node, othersRules[:3])
	apply(t, node, upstreamRules)
	apply(t, node, othersRules[3:])
	var table *nftables.Table
	node.Do(t, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table = c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "aws-cni"})
		c.AddChain(&nftables.Chain{Table: table, Name: "nat-prerouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-90)})
		return c.Flush()
	})
	removed, left := remove(t, node)
	if got, want := saved(t, node), saved(t, want); !slices.Equal(got, want) {
		t.Errorf("there is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(removed) != 1+3+6 || len(left) != 0 { // the table aws-cni, three chains, and six rules in chains of iptables' own
		t.Errorf("removed %q, left %q", removed, left)
	}
	node.Do(t, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		all, err := c.ListTables()
		if slices.ContainsFunc(all, func(o *nftables.Table) bool { return o.Name == table.Name }) {
			t.Error("the table aws-cni is there")
		}
		return err
	})
	if removed, left := remove(t, node); len(removed)+len(left) > 0 {
		t.Errorf("again: removed %q, left %q", removed, left)
	}
}

// TestAChainThatSomebodyElseLeadsToIsEmptiedAndSaid: a policy engine's rule does so.
func TestAChainThatSomebodyElseLeadsToIsEmptiedAndSaid(t *testing.T) {
	node := nstest.New(t)
	apply(t, node, upstreamRules)
	apply(t, node, []string{"-t nat -A PREROUTING -i gw0 -m comment --comment|Somebody: AWS, outbound connections|-j AWS-CONNMARK-CHAIN-0"})
	_, left := remove(t, node)
	if len(left) != 1 || !strings.Contains(left[0], "AWS-CONNMARK-CHAIN-0") {
		t.Errorf("left %q", left)
	}
	text := strings.Join(saved(t, node), "\n")
	if strings.Contains(text, "AWS-SNAT-CHAIN") || strings.Contains(text, "-A AWS-CONNMARK-CHAIN-0") || !strings.Contains(text, "Somebody: AWS") {
		t.Error(text)
	}
}

func TestANodeWithoutUpstreamsRulesIsLeftAsItIs(t *testing.T) {
	node := nstest.New(t)
	if removed, left := remove(t, node); len(removed)+len(left) > 0 {
		t.Errorf("of nothing: removed %q, left %q", removed, left)
	}
	apply(t, node, othersRules)
	before := saved(t, node)
	if removed, left := remove(t, node); len(removed)+len(left) > 0 || !slices.Equal(saved(t, node), before) {
		t.Errorf("removed %q, left %q", removed, left)
	}
}
