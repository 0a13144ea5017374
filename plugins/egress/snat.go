package egress

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TableName is the nftables table of this plugin, one per family (ip, ip6). It belongs to the node: the first ADD makes
// it, and it stays when the last pod goes.
const TableName = "branchline-egress"

// nftTimeout bounds one exchange with the kernel.
const nftTimeout = 5 * time.Second

// errRules is wrapped where the node's rules are missing or others.
var errRules = errors.New("nftables rules are not as they should be")

func (f Family) table() *nftables.Table {
	family := nftables.TableFamilyIPv4
	if f == IPv6 {
		family = nftables.TableFamilyIPv6
	}
	return &nftables.Table{Name: TableName, Family: family}
}

// ruleset is what a configuration wants of the node.
type ruleset struct {
	table  *nftables.Table
	chains []*nftables.Chain
	rules  []*nftables.Rule
}

// rulesFor translates what leaves and drops new connections that come. Both go by the subnet, so that a pod's coming and
// going changes nothing, and the 700th pod costs a packet what the first does.
func rulesFor(c Config) ruleset {
	t := c.Family.table()
	post := &nftables.Chain{Name: "postrouting", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource}
	forward := &nftables.Chain{Name: "forward", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
	multicast := netip.MustParsePrefix("224.0.0.0/4")
	if c.Family == IPv6 {
		multicast = netip.MustParsePrefix("ff00::/8")
	}
	var out []expr.Any
	out = append(out, match(source, c.Subnet, true)...)
	out = append(out, match(destination, multicast, false)...)
	out = append(out, c.translate()...)
	in := match(destination, c.Subnet, true)
	in = append(in,
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
	return ruleset{t, []*nftables.Chain{post, forward}, []*nftables.Rule{
		{Table: t, Chain: post, Exprs: out, UserData: c.stamp()},
		{Table: t, Chain: forward, Exprs: in, UserData: c.stamp()},
	}}
}

// stamp says in a rule which configuration it was made for. It begins like nft's comments, which nft shows.
func (c Config) stamp() []byte {
	sum := sha256.Sum256(fmt.Append(nil, 1, c.Subnet, c.NodeIP, c.RandomizeSNAT))
	comment := "egress of pods " + hex.EncodeToString(sum[:8]) + "\x00"
	return append([]byte{0, byte(len(comment))}, comment...)
}

func (c Config) translate() []expr.Any {
	random, fully := c.RandomizeSNAT == "hashrandom", c.RandomizeSNAT == "prng"
	if !c.NodeIP.IsValid() {
		return []expr.Any{&expr.Masq{Random: random, FullyRandom: fully}}
	}
	family := uint32(unix.NFPROTO_IPV4)
	if c.Family == IPv6 {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: c.NodeIP.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: family, RegAddrMin: 1, Random: random, FullyRandom: fully},
	}
}

// end is which address of a packet is meant.
type end int

const (
	source end = iota
	destination
)

func match(e end, p netip.Prefix, in bool) []expr.Any {
	n := uint32(p.Addr().BitLen() / 8)
	offset := uint32(12) // of the source address in an IPv4 header; RFC 791
	if n == 16 {
		offset = 8 // RFC 8200
	}
	if e == destination {
		offset += n
	}
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	op := expr.CmpOpEq
	if !in {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: n, Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func openNFT() (*nftables.Conn, error) {
	deadline := func(c *netlink.Conn) error { return c.SetDeadline(time.Now().Add(nftTimeout)) }
	c, err := nftables.New(nftables.WithSockOptions(deadline), nftables.AsLasting())
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for nftables: %w", err)
	}
	return c, nil
}

// checkRules compares what is there with what the configuration wants.
func checkRules(conn *nftables.Conn, c Config) error {
	want := rulesFor(c)
	for _, chain := range want.chains {
		rules, err := conn.GetRules(want.table, chain)
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%w: chain %s of table %s is not there", errRules, chain.Name, TableName)
		}
		if err != nil {
			return fmt.Errorf("list the rules of chain %s of table %s: %w", chain.Name, TableName, explainNFT(err))
		}
		if len(rules) != 1 || string(rules[0].UserData) != string(c.stamp()) {
			return fmt.Errorf("%w: chain %s of table %s has %d rules, or one for another configuration", errRules, chain.Name, TableName, len(rules))
		}
	}
	return nil
}

// ensureRules makes the rules as the configuration wants them, in one transaction, where they aren't.
func ensureRules(c Config) (err error) {
	conn, err := openNFT()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()
	if err := checkRules(conn, c); !errors.Is(err, errRules) {
		return err
	}
	want := rulesFor(c)
	conn.AddTable(want.table)
	for _, chain := range want.chains {
		conn.AddChain(chain)
		conn.FlushChain(chain)
	}
	for _, r := range want.rules {
		conn.AddRule(r)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", TableName, explainNFT(err))
	}
	return nil
}

// nftWorks says whether the kernel has nftables.
func nftWorks() (err error) {
	conn, err := openNFT()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()
	if _, err := conn.ListTables(); err != nil {
		return fmt.Errorf("list the tables of nftables: %w", explainNFT(err))
	}
	return nil
}

func explainNFT(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w (does this kernel have nf_tables, with nft_masq and nft_ct?)", err)
	}
	return err
}
