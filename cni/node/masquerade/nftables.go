package masquerade

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/nftnews"
)

// NFTables is a table of our own for each family:
//
//	table ip fairlead-node {
//		set cluster24 { type ipv4_addr; }
//		set cluster32 { type ipv4_addr; }
//		chain postrouting {
//			type nat hook postrouting priority srcnat;
//			ip saddr 10.244.1.0/24 goto leaving
//		}
//		chain leaving {
//			ip daddr @cluster32 return
//			ip daddr & 255.255.255.0 == @cluster24 return
//			masquerade fully-random
//		}
//	}
//
// A set has the cluster's ranges of one length. It is a hash table, in which the
// kernel finds, adds and deletes at the same cost however many there are; sets of
// intervals it walks through (nft_set_rbtree).
//
// fully-random: two packets that get their port at the same time on two processors
// would otherwise take the same one, and one of them be dropped.
type NFTables struct {
	conn *nftables.Conn
	port uint32 // of conn (netlink(7), nl_pid): in news of what it wrote
	last synced // what the kernel has, unless suspect
	have [2]content

	suspect atomic.Bool // somebody else has changed a table of ours
}

// content is what a family's table has; nil maps: there is none.
type content struct {
	ranges  map[netip.Prefix]struct{}
	lengths map[int]int // length → how many ranges have it
}

const nftName = "fairlead-node"

// buffers hold a transaction of all ranges of some thousand nodes.
const buffers = 8 << 20

// OpenNFTables opens nftables in the network namespace of the calling thread. It
// fails if the kernel has none.
func OpenNFTables() (*NFTables, error) {
	n := &NFTables{}
	var err error
	n.conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(n.prepare))
	if err == nil {
		_, err = n.conn.ListTables()
	}
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return n, nil
}

func (n *NFTables) prepare(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var named error
	err = raw.Control(func(fd uintptr) {
		var addr unix.Sockaddr
		if addr, named = unix.Getsockname(int(fd)); named == nil {
			n.port = addr.(*unix.SockaddrNetlink).Pid
		}
	})
	return errors.Join(err, named, c.SetReadBuffer(buffers), c.SetWriteBuffer(buffers))
}

func (n *NFTables) close() { _ = n.conn.CloseLasting() }

func (n *NFTables) String() string { return "nftables" }

// Lost implements Table. Firewalls begin by removing every table there is (flush
// ruleset), also when they are loaded anew.
func (n *NFTables) Lost(ctx context.Context) (<-chan struct{}, error) {
	return nftnews.Listen(ctx, func(e nftnews.Event) bool {
		damage := e.Lost || e.Table == nftName && e.By != n.port
		if damage {
			n.suspect.Store(true)
		}
		return damage
	})
}

// Sync implements Table.
func (n *NFTables) Sync(pods []netip.Prefix, to *Cluster) error {
	if n.suspect.Swap(false) {
		n.last = synced{}
	}
	last := n.last
	if last.is(pods, to) {
		return nil
	}
	n.last = synced{}
	for family := range n.have {
		if err := n.queue(family, last, pods, to); err != nil {
			return fmt.Errorf("queue masquerading: %w", err)
		}
	}
	if err := n.conn.Flush(); err != nil {
		return fmt.Errorf("write masquerading to nftables: %w", err)
	}
	n.last = newSynced(pods, to)
	return nil
}

// queue queues what one family lacks. What is right stays, also after a restart.
func (n *NFTables) queue(family int, last synced, pods []netip.Prefix, to *Cluster) error {
	is6 := family == 1
	t := newNFTable(is6, pods)
	have := &n.have[family]
	if last.to == to && slices.Equal(last.pods, pods) {
		changed, ok := to.since(last.changes)
		if ok && len(t.pods) == 0 {
			return nil
		}
		if come, gone, follows := have.follow(ofFamily(changed, is6), to); ok && follows {
			return errors.Join(n.each(t, gone, n.conn.SetDeleteElements), n.each(t, come, n.conn.SetAddElements))
		}
	}
	*have = content{}
	if len(t.pods) > 0 {
		*have = newContent(to.of(is6))
	}
	right, err := n.isRight(t, *have)
	if err != nil || right {
		return err
	}
	return n.write(t, *have)
}

func newContent(ranges []netip.Prefix) content {
	c := content{ranges: map[netip.Prefix]struct{}{}, lengths: map[int]int{}}
	for _, r := range ranges {
		c.ranges[r] = struct{}{}
		c.lengths[r.Bits()]++
	}
	return c
}

// follow takes in changes and returns those that are one. It does not follow if a
// length comes or goes, with which a set and a rule do.
func (c content) follow(changed []netip.Prefix, to *Cluster) (come, gone []netip.Prefix, follows bool) {
	follows = true
	for _, r := range changed {
		_, had := c.ranges[r]
		switch is := to.has(r); {
		case is && !had:
			c.ranges[r] = struct{}{}
			c.lengths[r.Bits()]++
			come = append(come, r)
			follows = follows && c.lengths[r.Bits()] > 1
		case had && !is:
			delete(c.ranges, r)
			c.lengths[r.Bits()]--
			gone = append(gone, r)
			follows = follows && c.lengths[r.Bits()] > 0
		}
	}
	return come, gone, follows
}

// sorted are the lengths, the longest first.
func (c content) sorted() []int {
	return slices.SortedFunc(maps.Keys(c.lengths), func(a, b int) int { return cmp.Compare(b, a) })
}

// each does something to the sets that the ranges are in, those of one set together.
func (n *NFTables) each(t nftTable, ranges []netip.Prefix, do func(*nftables.Set, []nftables.SetElement) error) error {
	byLength := map[int][]nftables.SetElement{}
	for _, r := range ranges {
		byLength[r.Bits()] = append(byLength[r.Bits()], nftables.SetElement{Key: r.Addr().AsSlice()})
	}
	for length, elements := range byLength {
		for chunk := range slices.Chunk(elements, chunkSize) {
			if err := do(t.set(length), chunk); err != nil {
				return err
			}
		}
	}
	return nil
}

// chunkSize keeps a message below 64 KiB, the limit of an attribute.
const chunkSize = 1000

// write queues the whole table. That it is removed first, and before that added,
// so that there is one to remove, nobody sees: a transaction is one step.
func (n *NFTables) write(t nftTable, want content) error {
	n.conn.AddTable(t.Table)
	n.conn.DelTable(t.Table)
	if len(t.pods) == 0 {
		return nil
	}
	n.conn.AddTable(t.Table)
	for _, length := range want.sorted() {
		if err := n.conn.AddSet(t.set(length), nil); err != nil {
			return err
		}
	}
	if err := n.each(t, slices.Collect(maps.Keys(want.ranges)), n.conn.SetAddElements); err != nil {
		return err
	}
	chains := t.chains(want)
	for _, c := range chains {
		n.conn.AddChain(c.Chain)
	}
	for _, c := range chains {
		for _, rule := range c.rules {
			n.conn.AddRule(&nftables.Rule{Table: t.Table, Chain: c.Chain, Exprs: rule})
		}
	}
	return nil
}

// nftTable is the table of a family.
type nftTable struct {
	*nftables.Table
	pods []netip.Prefix
	kind nftables.SetDatatype
	// Where the addresses are in the IP header, and how long they are.
	source, destination, length uint32
}

func newNFTable(is6 bool, pods []netip.Prefix) nftTable {
	t := nftTable{
		Table:  &nftables.Table{Name: nftName, Family: nftables.TableFamilyIPv4},
		pods:   shortest(ofFamily(pods, is6)),
		kind:   nftables.TypeIPAddr,
		source: 12, destination: 16, length: 4, // RFC 791, section 3.1
	}
	if is6 {
		t.Family, t.kind = nftables.TableFamilyIPv6, nftables.TypeIP6Addr
		t.source, t.destination, t.length = 8, 24, 16 // RFC 8200, section 3
	}
	return t
}

// set is that of the ranges of one length.
func (t nftTable) set(length int) *nftables.Set {
	return &nftables.Set{Table: t.Table, ID: uint32(length) + 1, Name: setName(length), KeyType: t.kind}
}

func setName(length int) string { return fmt.Sprint("cluster", length) }

// nftChain is a chain with its rules.
type nftChain struct {
	*nftables.Chain
	rules [][]expr.Any
}

func (t nftTable) chains(want content) []nftChain {
	leaving := nftChain{Chain: &nftables.Chain{Name: "leaving", Table: t.Table}}
	for _, length := range want.sorted() {
		leaving.rules = append(leaving.rules, append(t.prefix(t.destination, length),
			&expr.Lookup{SourceRegister: 1, SetName: setName(length), SetID: t.set(length).ID},
			&expr.Verdict{Kind: expr.VerdictReturn}))
	}
	leaving.rules = append(leaving.rules, []expr.Any{&expr.Masq{FullyRandom: true}})
	postrouting := nftChain{Chain: &nftables.Chain{
		Name: "postrouting", Table: t.Table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}}
	for _, p := range t.pods {
		postrouting.rules = append(postrouting.rules, append(t.prefix(t.source, p.Bits()),
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
			&expr.Verdict{Kind: expr.VerdictGoto, Chain: leaving.Name}))
	}
	return []nftChain{leaving, postrouting}
}

// prefix reads the first bits of an address.
func (t nftTable) prefix(offset uint32, bits int) []expr.Any {
	read := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: t.length}}
	size := int(t.length) * 8
	if bits == size {
		return read
	}
	return append(read, &expr.Bitwise{
		SourceRegister: 1, DestRegister: 1, Len: t.length,
		Mask: net.CIDRMask(bits, size), Xor: make([]byte, t.length),
	})
}

// CleanupNFTables removes the tables.
func CleanupNFTables() error {
	n, err := OpenNFTables()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL) {
		return nil // no nftables, no tables
	}
	if err != nil {
		return err
	}
	defer n.close()
	return n.Sync(nil, &Cluster{})
}
