package masquerade

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/node/nftnews"
)

// NFTables is a table of our own for each family:
//
//	table ip fairlead-node {
//		set pods { type ipv4_addr; flags interval; }
//		set cluster { type ipv4_addr; flags interval; }
//		chain postrouting {
//			type nat hook postrouting priority srcnat;
//			ip saddr @pods ip daddr != @cluster masquerade fully-random
//		}
//	}
//
// fully-random: two packets that get their port at the same time on two processors
// would otherwise take the same one, and one of them be dropped.
type NFTables struct {
	conn  *nftables.Conn
	port  uint32 // of conn (netlink(7), nl_pid): in news of what it wrote
	have  Ranges
	known bool // have is what the kernel has, unless suspect

	suspect atomic.Bool // somebody else has changed a table of ours
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
func (n *NFTables) Sync(want Ranges) error {
	if n.suspect.Swap(false) {
		n.known = false
	}
	if n.known && n.have.Equal(want) {
		return nil
	}
	known := n.known
	n.known = false
	for _, is6 := range []bool{false, true} {
		if err := n.queue(newNFTable(is6), known, n.have.of(is6), want.of(is6)); err != nil {
			return fmt.Errorf("queue masquerading: %w", err)
		}
	}
	if err := n.conn.Flush(); err != nil {
		return fmt.Errorf("write masquerading to nftables: %w", err)
	}
	n.have, n.known = want, true
	return nil
}

// queue queues what one family lacks. What is right stays, also after a restart.
func (n *NFTables) queue(t nftTable, known bool, have, want Ranges) error {
	if known && len(have.Pods) > 0 && len(want.Pods) > 0 {
		return errors.Join(n.change(t.pods, have.Pods, want.Pods), n.change(t.cluster, have.Cluster, want.Cluster))
	}
	right, err := n.isRight(t, want)
	if err != nil || right {
		return err
	}
	return n.write(t, want)
}

// nftTable is the table of a family.
type nftTable struct {
	*nftables.Table
	pods, cluster *nftables.Set
	// Where the addresses are in the IP header, and how long they are.
	source, destination, length uint32
}

func newNFTable(is6 bool) nftTable {
	t := nftTable{
		Table:  &nftables.Table{Name: nftName, Family: nftables.TableFamilyIPv4},
		source: 12, destination: 16, length: 4, // RFC 791, section 3.1
	}
	kind := nftables.TypeIPAddr
	if is6 {
		t.Family, kind = nftables.TableFamilyIPv6, nftables.TypeIP6Addr
		t.source, t.destination, t.length = 8, 24, 16 // RFC 8200, section 3
	}
	t.pods = &nftables.Set{Table: t.Table, ID: 1, Name: "pods", KeyType: kind, Interval: true}
	t.cluster = &nftables.Set{Table: t.Table, ID: 2, Name: "cluster", KeyType: kind, Interval: true}
	return t
}

// write queues the whole table. That it is removed first, and before that added,
// so that there is one to remove, nobody sees: a transaction is one step.
func (n *NFTables) write(t nftTable, want Ranges) error {
	n.conn.AddTable(t.Table)
	n.conn.DelTable(t.Table)
	if len(want.Pods) == 0 {
		return nil
	}
	n.conn.AddTable(t.Table)
	for _, s := range []struct {
		set    *nftables.Set
		ranges []netip.Prefix
	}{{t.pods, want.Pods}, {t.cluster, want.Cluster}} {
		if err := n.conn.AddSet(s.set, nil); err != nil {
			return err
		}
		if err := n.add(s.set, s.ranges); err != nil {
			return err
		}
	}
	n.conn.AddRule(&nftables.Rule{Table: t.Table, Chain: n.conn.AddChain(t.chain()), Exprs: t.rule()})
	return nil
}

func (t nftTable) chain() *nftables.Chain {
	return &nftables.Chain{
		Name: "postrouting", Table: t.Table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	}
}

func (t nftTable) rule() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: t.source, Len: t.length},
		&expr.Lookup{SourceRegister: 1, SetName: t.pods.Name, SetID: t.pods.ID},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: t.destination, Len: t.length},
		&expr.Lookup{SourceRegister: 1, SetName: t.cluster.Name, SetID: t.cluster.ID, Invert: true},
		&expr.Masq{FullyRandom: true},
	}
}

// change queues what turns have into want.
func (n *NFTables) change(set *nftables.Set, have, want []netip.Prefix) error {
	// Two ranges may not overlap at any moment, not even inside a transaction.
	for chunk := range slices.Chunk(beyond(have, want), chunkSize) {
		if err := n.conn.SetDeleteElements(set, elements(chunk)); err != nil {
			return err
		}
	}
	return n.add(set, beyond(want, have))
}

// chunkSize keeps a message below 64 KiB, the limit of an attribute.
const chunkSize = 400

func (n *NFTables) add(set *nftables.Set, ranges []netip.Prefix) error {
	for chunk := range slices.Chunk(ranges, chunkSize) {
		if err := n.conn.SetAddElements(set, elements(chunk)); err != nil {
			return err
		}
	}
	return nil
}

// beyond is what a has and b has not. Both are sorted.
func beyond(a, b []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range a {
		for len(b) > 0 && b[0].Compare(p) < 0 {
			b = b[1:]
		}
		if len(b) == 0 || b[0] != p {
			out = append(out, p)
		}
	}
	return out
}

// elements are a set's in the kernel's form: where a range begins, and where what
// is not in it does, unless nothing comes after it.
func elements(ranges []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range ranges {
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if after := lastOf(p).Next(); after.IsValid() {
			out = append(out, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// lastOf is the last address of a range.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
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
	return n.Sync(Ranges{})
}
