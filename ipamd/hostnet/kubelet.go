package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// KubeletTable is the nftables table that marks the kubelet's own connections. It is apart from MarksTable because its
// rules can only be made by who sees the host's cgroups as the host does: the init container. The agent keeps its set.
const KubeletTable = "branchline-kubelet"

// Errors of the opt-in that keeps the kubelet's own connections on the node.
var (
	// ErrNoKubelet says that the kubelet was not found.
	ErrNoKubelet = errors.New("no process of root listens on the kubelet's port 10250")
	// ErrNoCgroup says that the kubelet has no cgroup of its own.
	ErrNoCgroup = errors.New("the kubelet has no cgroup of its own in the unified hierarchy (a host with cgroup v1?)")
	// ErrForeignCgroups says that the rules can't be made from where this process runs.
	ErrForeignCgroups = errors.New("the rules are gone and only the init container can make them: restart this node's aws-node pod")
)

const (
	kubeletSet = "kubelet"
	// kubeletLevels is how deep below the root the kubelet's cgroup may be: /kubelet to /a/b/c/kubelet.
	kubeletLevels = 4
	// rootCgroup is the id of the unified hierarchy's root.
	rootCgroup = 1
	replyTo    = 1 // IP_CT_DIR_REPLY
)

func kubeletTable(ipv6 bool) nftTable {
	set := &nftables.Set{Name: kubeletSet, ID: 1, KeyType: nftables.TypeCGroupV2, KeyByteOrder: binaryutil.NativeEndian}
	ours := []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeyMARK},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(KubeletMark), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
	}
	out := nftChain{name: "output", hook: nftables.ChainHookOutput, kind: nftables.ChainTypeRoute}
	out.rules = append(out.rules, concat(ours, setMark(KubeletMark, KubeletMark), []expr.Any{verdict(expr.VerdictReturn)}))
	for level := 1; level <= kubeletLevels; level++ {
		out.rules = append(out.rules, concat([]expr.Any{
			&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(expr.CtStateBitNEW), Xor: native(0)},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: native(0)},
			&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(level), Register: 1},
			&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
			&expr.Ct{Register: 1, Key: expr.CtKeyMARK}, masked(KubeletMark, KubeletMark),
			&expr.Ct{Register: 1, SourceRegister: true, Key: expr.CtKeyMARK},
		}, setMark(KubeletMark, KubeletMark), []expr.Any{verdict(expr.VerdictReturn)}))
	}
	in := nftChain{name: "prerouting", hook: nftables.ChainHookPrerouting, kind: nftables.ChainTypeFilter, rules: [][]expr.Any{concat([]expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeyDIRECTION}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{replyTo}},
	}, ours, setMark(KubeletMark, KubeletMark))}}
	return nftTable{name: KubeletTable, family: familyOf(ipv6), sets: []*nftables.Set{set}, chains: []nftChain{out, in}}
}

func concat(parts ...[]expr.Any) (out []expr.Any) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func cgroupElement(id uint64) []nftables.SetElement {
	return []nftables.SetElement{{Key: binary.NativeEndian.AppendUint64(nil, id)}}
}

// MakeKubeletTable makes the rules that mark the kubelet's own connections, with an empty set, if they are not there. It
// is for the init container, which sees the host's cgroups as the host does.
func (k *Kernel) MakeKubeletTable(ctx context.Context, ipv6 bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, err := k.kubeletRules(ctx, ipv6)
	return err
}

// kubelet keeps the table as desired. Once it is not asked for any more it goes; while only no strict pod may run it
// stays, since nothing looks at its mark then and the agent might not be able to make it again.
func (k *Kernel) kubelet(ctx context.Context, d Desired) error {
	if !d.KubeletLocal {
		err := k.nft.drop(ctx, KubeletTable, familyOf(d.IPv6))
		if errors.Is(err, ErrNoNFTables) {
			return nil
		}
		return err
	}
	id, err := kubeletCgroup(ctx)
	if err != nil {
		return fmt.Errorf("find the kubelet's cgroup: %w", err)
	}
	ids, err := k.kubeletRules(ctx, d.IPv6)
	if err != nil || len(ids) == 1 && ids[0] == id {
		return err
	}
	t := kubeletTable(d.IPv6)
	return k.nft.do(ctx, func(c *nftables.Conn) error {
		c.FlushSet(t.set(0))
		if err := addElements(c, t.set(0), cgroupElement(id)); err != nil {
			return err
		}
		return c.Flush()
	})
}

// kubeletRules makes the table if it is not there, and returns the cgroups in its set.
func (k *Kernel) kubeletRules(ctx context.Context, ipv6 bool) (ids []uint64, err error) {
	t, there := kubeletTable(ipv6), false
	err = k.nft.do(ctx, func(c *nftables.Conn) (err error) {
		if there, err = t.isThere(c); err != nil || !there {
			return err
		}
		elements, err := t.elements(c, 0)
		for _, e := range elements {
			if len(e.Key) == 8 {
				ids = append(ids, binary.NativeEndian.Uint64(e.Key))
			}
		}
		return err
	})
	if err != nil || there {
		return ids, err
	}
	if !k.seesHostCgroups(ctx, ipv6) {
		return nil, fmt.Errorf("mark the kubelet's connections: %w", ErrForeignCgroups)
	}
	return nil, k.nft.do(ctx, func(c *nftables.Conn) error {
		if err := t.rebuild(c); err != nil {
			return err
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("make the nftables table %s: %w", t.name, lacking(err))
		}
		return nil
	})
}

// initialCgroupNamespace is the inode number that the kernel gives to the first cgroup namespace.
const initialCgroupNamespace = "cgroup:[4026531835]"

// seesHostCgroups says whether "level 2" of a rule that this process makes is the second level of the host's cgroups.
// Newer kernels count from the root of the maker's cgroup namespace.
func (k *Kernel) seesHostCgroups(ctx context.Context, ipv6 bool) bool {
	ns, err := os.Readlink("/proc/thread-self/ns/cgroup")
	if errors.Is(err, os.ErrNotExist) || ns == initialCgroupNamespace {
		return true
	}
	// A rule at the deepest level that can be written is accepted only where nothing is added to it. It is made and
	// taken away in one transaction.
	const deepest = 255
	probe := nftTable{name: KubeletTable + "-probe", family: familyOf(ipv6)}
	err = k.nft.do(ctx, func(c *nftables.Conn) error {
		table := c.AddTable(probe.table())
		chain := c.AddChain(&nftables.Chain{Name: "probe", Table: table})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: deepest, Register: 1}}})
		c.DelTable(table)
		return c.Flush()
	})
	return err == nil
}
