package hostnet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
)

// TableKey names an nftables table.
type TableKey struct {
	Name string
	IPv6 bool
}

// Tables are those of our nftables tables that hold nothing but rules, as they are there: a table's digest says which rules
// it has and where. One that is missing is not in it.
type Tables struct {
	// Missing is set where this kernel has no nf_tables: there is nothing to plan then.
	Missing bool
	Digests map[TableKey]string
}

// TableChange is one transaction on one of these tables: it is made anew, or goes.
type TableChange struct {
	Key    TableKey
	Delete bool
	table  nftTable
	digest string
}

func (c TableChange) String() string {
	if c.Delete {
		return "delete the nftables table " + c.Key.Name
	}
	return "make the nftables table " + c.Key.Name
}

// ruleTables are the names of all such tables.
var ruleTables = []string{NATTable, GuardTable}

func (t nftTable) key() TableKey { return TableKey{t.name, t.family == nftables.TableFamilyIPv6} }

// wantsTables says whether any of these tables is asked for.
func (d Desired) wantsTables() bool { return d.NAT.Source || d.NAT.NodePort || d.Egress.IsValid() }

// planTables returns the changes to these tables. One that depends on what is not known just now is left as it is.
func planTables(d Desired, have Tables) (out []TableChange) {
	if have.Missing {
		return nil
	}
	nat, natWanted, unknown := d.natTable()
	guard, guardWanted := d.guardTable()
	wanted := map[TableKey]nftTable{}
	if natWanted {
		wanted[nat.key()] = nat
	}
	if guardWanted {
		wanted[guard.key()] = guard
	}
	for _, name := range ruleTables {
		for _, ipv6 := range []bool{false, true} {
			k := TableKey{name, ipv6}
			digest, there := have.Digests[k]
			t, want := wanted[k]
			switch {
			case name == NATTable && unknown:
			case want && digest != t.digest():
				out = append(out, TableChange{Key: k, table: t, digest: t.digest()})
			case !want && there:
				out = append(out, TableChange{Key: k, Delete: true})
			}
		}
	}
	return out
}

func (t Tables) apply(c TableChange) Tables {
	digests := map[TableKey]string{}
	for k, v := range t.Digests {
		if k != c.Key {
			digests[k] = v
		}
	}
	if !c.Delete {
		digests[c.Key] = c.digest
	}
	t.Digests = digests
	return t
}

// chainDigest is a chain's place, and what its rules say of themselves.
func chainDigest(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, comments []string) string {
	at := "jumped to"
	if hook != nil && priority != nil {
		at = fmt.Sprintf("%s hook %d priority %d", kind, *hook, *priority)
	}
	return fmt.Sprintf("%s (%s): %s", name, at, strings.Join(comments, "; "))
}

// digest is what the kernel's table has when it is as this one. Each rule's comment carries the fingerprint of them all.
func (t nftTable) digest() string {
	print, err := t.fingerprint()
	if err != nil {
		return err.Error() // never what a table in the kernel has: making it fails with the same words
	}
	var chains []string
	for _, c := range t.chains {
		var comments []string
		for i := range c.rules {
			comments = append(comments, t.comment(print, i))
		}
		chains = append(chains, chainDigest(c.name, c.kind, c.hook, c.at(), comments))
	}
	slices.Sort(chains)
	return strings.Join(chains, "\n")
}

// ruleTables reads our tables that hold nothing but rules.
func (n *nft) ruleTables(ctx context.Context) (out Tables, err error) {
	out.Digests = map[TableKey]string{}
	err = n.do(ctx, func(c *nftables.Conn) error {
		for _, ipv6 := range []bool{false, true} {
			tables, err := c.ListTablesOfFamily(familyOf(ipv6))
			if err != nil {
				return fmt.Errorf("list the nftables tables: %w", lacking(err))
			}
			for _, t := range tables {
				if !slices.Contains(ruleTables, t.Name) {
					continue
				}
				if out.Digests[TableKey{t.Name, ipv6}], err = digestOf(c, t); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return out, err
}

func digestOf(c *nftables.Conn, t *nftables.Table) (string, error) {
	all, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return "", fmt.Errorf("list the nftables chains: %w", err)
	}
	var chains []string
	for _, chain := range all {
		if chain.Table.Name != t.Name {
			continue
		}
		rules, err := c.GetRules(t, chain)
		if err != nil {
			return "", fmt.Errorf("list the rules of chain %s of table %s: %w", chain.Name, t.Name, err)
		}
		var comments []string
		for _, r := range rules {
			comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			comments = append(comments, comment)
		}
		chains = append(chains, chainDigest(chain.Name, chain.Type, chain.Hooknum, chain.Priority, comments))
	}
	slices.Sort(chains)
	return strings.Join(chains, "\n"), nil
}

// changeTable applies one change: all of it, or nothing.
func (n *nft) changeTable(ctx context.Context, ch TableChange) error {
	if ch.Delete {
		return n.drop(ctx, ch.Key.Name, familyOf(ch.Key.IPv6))
	}
	return n.do(ctx, func(c *nftables.Conn) error {
		if err := ch.table.rebuild(c); err != nil {
			return err
		}
		return lacking(c.Flush())
	})
}
