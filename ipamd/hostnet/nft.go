package hostnet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	nlconn "github.com/mdlayher/netlink"

	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// ErrNoNFTables says that this kernel has no nf_tables, or lacks a part of it.
var ErrNoNFTables = errors.New("this kernel lacks nf_tables, or a part of it that is needed")

// nft is one connection to nf_tables. After an error the connection is made anew: what the kernel still has to say on
// the old one would be taken for an answer to the next question.
type nft struct {
	conn *nftables.Conn
	sock *nlconn.Conn
}

func (n *nft) open() error {
	if n.conn != nil {
		return nil
	}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *nlconn.Conn) error {
		n.sock = c
		return nil
	}))
	if err != nil {
		return fmt.Errorf("open a netfilter netlink socket: %w", lacking(err))
	}
	n.conn = conn
	return nil
}

func (n *nft) close() {
	if n.conn != nil {
		_ = n.conn.CloseLasting()
	}
	n.conn, n.sock = nil, nil
}

// do runs f with a connection that does not outlive the context's deadline.
func (n *nft) do(ctx context.Context, f func(*nftables.Conn) error) error {
	if err := n.open(); err != nil {
		return err
	}
	end := time.Now().Add(rtnl.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	err := n.sock.SetDeadline(end)
	if err == nil {
		err = f(n.conn)
	}
	if err != nil {
		n.close()
		if !time.Now().Before(end) { // the library's errors don't tell
			err = fmt.Errorf("%w: %w", errNoAnswer, err)
		}
	}
	return err
}

// errNoAnswer is of a kernel that is too busy to answer in time: a fault that passes, and nothing that it lacks.
var errNoAnswer = errors.New("the kernel has not answered in time")

// lacking adds ErrNoNFTables to what the kernel answers when the subsystem or an expression's module is not there.
func lacking(err error) error {
	if err == nil {
		return nil
	}
	for _, no := range []syscall.Errno{syscall.EPROTONOSUPPORT, syscall.EAFNOSUPPORT, syscall.EOPNOTSUPP, syscall.ENOENT, syscall.EINVAL} {
		if errors.Is(err, no) {
			return fmt.Errorf("%w: %w", ErrNoNFTables, err)
		}
	}
	return err
}

// nftTable is a whole table: all that this package needs to make it, and to see whether it is there as it was made.
type nftTable struct {
	name   string
	family nftables.TableFamily
	chains []nftChain
	sets   []*nftables.Set // its named sets
}

type nftChain struct {
	name     string
	hook     *nftables.ChainHook // nil: it is only jumped to
	kind     nftables.ChainType
	priority *nftables.ChainPriority // nil: that of mangle
	rules    [][]expr.Any
}

// at is where among the chains of its hook it is.
func (w nftChain) at() *nftables.ChainPriority {
	if w.priority == nil {
		return nftables.ChainPriorityMangle
	}
	return w.priority
}

func (t nftTable) table() *nftables.Table { return &nftables.Table{Name: t.name, Family: t.family} }

// fingerprint is what each rule carries as its comment, which the kernel keeps and any other tool that changes the rule
// drops. Comparing that is more certain than comparing expressions, which kernels of different age give back differently.
func (t nftTable) fingerprint() (string, error) {
	h := sha256.New()
	for _, c := range t.chains {
		fmt.Fprintln(h, c.name, c.kind, len(c.rules))
		for _, r := range c.rules {
			for _, e := range r {
				if l, ok := e.(*expr.Lookup); ok { // its set's id is of this process only
					fmt.Fprintln(h, "lookup", l.SetName, l.SourceRegister)
					continue
				}
				b, err := expr.Marshal(byte(t.family), e)
				if err != nil {
					return "", fmt.Errorf("write down table %s: %w", t.name, err)
				}
				h.Write(b)
			}
		}
	}
	return fmt.Sprintf("branchline %x", h.Sum(nil)[:6]), nil
}

func (t nftTable) comment(fingerprint string, rule int) string {
	return fmt.Sprintf("%s %d", fingerprint, rule)
}

// exists says whether there is a table of this name, whatever is in it.
func (t nftTable) exists(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(t.family)
	if err != nil {
		return false, fmt.Errorf("list the nftables tables: %w", lacking(err))
	}
	return slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == t.name }), nil
}

// isThere compares the kernel's table with this one, the sets' elements aside.
func (t nftTable) isThere(c *nftables.Conn) (bool, error) {
	if exists, err := t.exists(c); err != nil || !exists {
		return false, err
	}
	chains, err := c.ListChainsOfTableFamily(t.family)
	if err != nil {
		return false, fmt.Errorf("list the nftables chains: %w", err)
	}
	found := 0
	for _, o := range chains {
		if o.Table.Name != t.name {
			continue
		}
		at := slices.IndexFunc(t.chains, func(w nftChain) bool { return w.name == o.Name })
		if at < 0 || !t.chains[at].is(o) {
			return false, nil
		}
		found++
	}
	if found != len(t.chains) {
		return false, nil
	}
	if are, err := t.setsAreThere(c); err != nil || !are {
		return false, err
	}
	return t.rulesAreThere(c)
}

func (t nftTable) setsAreThere(c *nftables.Conn) (bool, error) {
	sets, err := c.GetSets(t.table())
	if err != nil {
		return false, fmt.Errorf("list the sets of table %s: %w", t.name, err)
	}
	if len(sets) != len(t.sets) {
		return false, nil
	}
	for _, w := range t.sets {
		if !slices.ContainsFunc(sets, func(o *nftables.Set) bool {
			return o.Name == w.Name && o.IsMap == w.IsMap && o.Interval == w.Interval
		}) {
			return false, nil
		}
	}
	return true, nil
}

func (w nftChain) is(o *nftables.Chain) bool {
	if w.hook == nil {
		return o.Hooknum == nil
	}
	return o.Type == w.kind && o.Hooknum != nil && *o.Hooknum == *w.hook && o.Priority != nil && *o.Priority == *w.at()
}

func (t nftTable) rulesAreThere(c *nftables.Conn) (bool, error) {
	print, err := t.fingerprint()
	if err != nil {
		return false, err
	}
	for _, w := range t.chains {
		rules, err := c.GetRules(t.table(), &nftables.Chain{Name: w.name})
		if err != nil {
			return false, fmt.Errorf("list the rules of chain %s: %w", w.name, err)
		}
		if len(rules) != len(w.rules) {
			return false, nil
		}
		for i, r := range rules {
			if comment, _ := userdata.GetString(r.UserData, userdata.TypeComment); comment != t.comment(print, i) {
				return false, nil
			}
		}
	}
	return true, nil
}

// rebuild adds to the batch what makes the table anew, with empty sets. Adding it first lets the deletion succeed whether
// or not it was there.
func (t nftTable) rebuild(c *nftables.Conn) error {
	print, err := t.fingerprint()
	if err != nil {
		return err
	}
	c.DelTable(c.AddTable(t.table()))
	table := c.AddTable(t.table())
	chains := map[string]*nftables.Chain{}
	for _, w := range t.chains {
		chain := &nftables.Chain{Name: w.name, Table: table}
		if w.hook != nil {
			chain.Hooknum, chain.Type, chain.Priority = w.hook, w.kind, w.at()
		}
		chains[w.name] = c.AddChain(chain)
	}
	for i := range t.sets {
		if err := c.AddSet(t.set(i), nil); err != nil {
			return fmt.Errorf("write down set %s: %w", t.sets[i].Name, err)
		}
	}
	for _, w := range t.chains {
		for i, exprs := range w.rules {
			c.AddRule(&nftables.Rule{
				Table: table, Chain: chains[w.name], Exprs: exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, t.comment(print, i)),
			})
		}
	}
	return nil
}

// set is the i-th set as requests name it.
func (t nftTable) set(i int) *nftables.Set {
	set := *t.sets[i]
	set.Table = t.table()
	return &set
}

// elementsAtOnce keeps a message's list of elements below the 64 KiB that an attribute holds.
const elementsAtOnce = 400

func addElements(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for part := range slices.Chunk(elements, elementsAtOnce) {
		if err := c.SetAddElements(set, part); err != nil {
			return fmt.Errorf("write down elements of set %s: %w", set.Name, err)
		}
	}
	return nil
}

func deleteElements(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) error {
	for part := range slices.Chunk(elements, elementsAtOnce) {
		if err := c.SetDeleteElements(set, part); err != nil {
			return fmt.Errorf("write down elements of set %s: %w", set.Name, err)
		}
	}
	return nil
}

// elements lists those of the i-th set.
func (t nftTable) elements(c *nftables.Conn, i int) ([]nftables.SetElement, error) {
	out, err := c.GetSetElements(t.set(i))
	if err != nil {
		return nil, fmt.Errorf("list the elements of set %s: %w", t.sets[i].Name, err)
	}
	return out, nil
}

// marksOf reads the table that marks packets.
func (n *nft) marksOf(ctx context.Context, shape Shape) (m Marks, err error) {
	t := marksTable(shape)
	err = n.do(ctx, func(c *nftables.Conn) error {
		if there, err := t.exists(c); err != nil || !there {
			return err
		}
		// A table of other rules is made anew; what pods have of ENIs that no source shows is taken along from its sets.
		if readable, err := t.setsAreThere(c); err != nil || !readable {
			return err
		}
		intact, err := t.isThere(c)
		if err != nil {
			return err
		}
		single, err := t.elements(c, singleMap)
		if err != nil {
			return err
		}
		ranges, err := t.elements(c, rangeMap)
		if err != nil {
			return err
		}
		var ours bool
		m.Devices, ours = parseElements(single, ranges, shape.IPv6)
		m.Intact, m.Shape = intact && ours, shape
		return nil
	})
	return m, err
}

// change applies one transaction.
func (n *nft) change(ctx context.Context, ch MarksChange) error {
	t := marksTable(ch.Shape)
	return n.do(ctx, func(c *nftables.Conn) error {
		if ch.Rebuild {
			if err := t.rebuild(c); err != nil {
				return err
			}
		}
		for i, parts := range map[int][2][]nftables.SetElement{
			singleMap: {singlesOf(ch.Delete), singlesOf(ch.Add)}, rangeMap: {rangesOf(ch.Delete), rangesOf(ch.Add)},
		} {
			if err := errors.Join(deleteElements(c, t.set(i), parts[0]), addElements(c, t.set(i), parts[1])); err != nil {
				return err
			}
		}
		if ch.Rebuild {
			return lacking(c.Flush())
		}
		return c.Flush()
	})
}

// drop deletes a table if it is there.
func (n *nft) drop(ctx context.Context, name string, family nftables.TableFamily) error {
	return n.do(ctx, func(c *nftables.Conn) error {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			return fmt.Errorf("list the nftables tables: %w", err)
		}
		if !slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == name }) {
			return nil
		}
		c.DelTable(&nftables.Table{Name: name, Family: family})
		return c.Flush()
	})
}
