package takeover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"

	"github.com/branchline-cni/branchline/ipamd/nfnl"
)

// What upstream's agent makes of netfilter. By iptables: chains of its own in nat, jumps to them, and rules beside them that
// only their comments tell from others'. By nftables: one table.
const (
	snatChain, connmarkChain = "AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"
	nftTable                 = "aws-cni"
)

// comments are those of its rules in chains that are not its own.
var comments = []string{"AWS SNAT CHAIN", "AWS, SNAT", "AWS, outbound connections", "AWS, CONNMARK", "AWS CONNMARK CHAIN", "AWS, primary ENI"}

func isComment(s string) bool {
	for _, c := range comments {
		if s == c || strings.HasPrefix(s, c+" ") || strings.HasPrefix(s, c+",") {
			return true
		}
	}
	return false
}

func isChain(name string) bool {
	return strings.HasPrefix(name, snatChain) || strings.HasPrefix(name, connmarkChain)
}

// places are the chains that are looked at, by iptables' table.
var places = map[string][]string{"nat": {"PREROUTING", "POSTROUTING"}, "mangle": {"PREROUTING"}}

// RemoveNAT removes what upstream's agent has left in nf_tables, in the network namespace of the caller: by iptables-nft, or as
// a table of its own. It must be called only once this agent's own rules are in place: until then connections of pods
// that leave the VPC would lose their source address. Both at once do no harm, as the first that sets one wins.
//
// Of others' rules none is touched. removed says what went; left what could not, because somebody else's rule leads to it.
// iptables-legacy's are not looked at, netlink does not reach them: see RemoveLegacyNAT. It may run any number of times.
func RemoveNAT(ctx context.Context) (removed, left []string, err error) {
	conn, tables, err := open()
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()
	var errs []error
	for _, t := range tables {
		if ctx.Err() != nil {
			return removed, left, errors.Join(append(errs, context.Cause(ctx))...)
		}
		switch {
		case t.Name == nftTable:
			conn.DelTable(t)
			if err := conn.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
				errs = append(errs, fmt.Errorf("delete nftables table %s: %w", t.Name, err))
				continue
			}
			removed = append(removed, "nftables table "+t.Name)
		case places[t.Name] != nil:
			gone, stays, err := clean(conn, t)
			removed, left, errs = append(removed, gone...), append(left, stays...), append(errs, err)
		}
	}
	return removed, left, errors.Join(errs...)
}

// clean removes upstream's rules from one of iptables' tables in one transaction, and then its chains, which are empty by
// that.
func clean(conn *nftables.Conn, t *nftables.Table) (removed, left []string, err error) {
	chains, err := conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return nil, nil, fmt.Errorf("list the chains of table %s: %w", t.Name, err)
	}
	var own []*nftables.Chain
	for _, c := range chains {
		switch {
		case c.Table.Name != t.Name:
		case isChain(c.Name):
			own = append(own, c)
			conn.FlushChain(c)
		case slices.Contains(places[t.Name], c.Name):
			rules, err := conn.GetRules(t, c)
			if err != nil {
				return nil, nil, fmt.Errorf("list the rules of %s %s: %w", t.Name, c.Name, err)
			}
			for _, r := range rules {
				if !isComment(comment(r)) {
					continue
				}
				r.Table, r.Chain = t, c // the reply's table lacks the family
				if err := conn.DelRule(r); err != nil {
					return nil, nil, fmt.Errorf("delete a rule of %s %s: %w", t.Name, c.Name, err)
				}
				removed = append(removed, fmt.Sprintf("rule %q of %s %s", comment(r), t.Name, c.Name))
			}
		}
	}
	if len(removed)+len(own) == 0 {
		return nil, nil, nil
	}
	if err := conn.Flush(); err != nil {
		return nil, nil, fmt.Errorf("remove %q of table %s: %w", removed, t.Name, err)
	}
	var errs []error
	for _, c := range own {
		conn.DelChain(c)
		switch err := conn.Flush(); {
		case err == nil, errors.Is(err, syscall.ENOENT):
			removed = append(removed, "chain "+c.Name+" of "+t.Name)
		case errors.Is(err, syscall.EBUSY):
			left = append(left, fmt.Sprintf("chain %s of %s, which is empty: a rule of somebody else's leads to it", c.Name, t.Name))
		default:
			errs = append(errs, fmt.Errorf("delete chain %s of %s: %w", c.Name, t.Name, err))
		}
	}
	return removed, left, errors.Join(errs...)
}

// comment is a rule's: iptables-nft puts it beside the rule, or, as older ones do, into a match of its own.
func comment(r *nftables.Rule) string {
	if s, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok {
		return strings.TrimRight(s, "\x00")
	}
	for _, e := range r.Exprs {
		m, ok := e.(*expr.Match)
		if !ok || m.Name != "comment" {
			continue
		}
		switch info := m.Info.(type) {
		case *xt.Comment:
			return strings.TrimRight(string(*info), "\x00")
		case *xt.Unknown:
			s, _, _ := bytes.Cut(*info, []byte{0})
			return string(s)
		}
	}
	return ""
}

// HasTable says whether a table of nftables is there, of either family of addresses: whether this agent's own rules are in
// place is what has to be known before upstream's go.
func HasTable(name string) (has bool, err error) {
	conn, tables, err := open()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }), conn.CloseLasting()
}

// open connects to nf_tables and lists the tables of both families of addresses: none where this kernel has no nf_tables.
func open() (*nftables.Conn, []*nftables.Table, error) {
	conn, all, err := nfnl.Tables()
	return conn, slices.DeleteFunc(all, func(t *nftables.Table) bool {
		return t.Family != nftables.TableFamilyIPv4 && t.Family != nftables.TableFamilyIPv6
	}), err
}
