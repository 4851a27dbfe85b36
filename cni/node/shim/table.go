package shim

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// table is a table of nftables for each family:
//
//	table ip fairlead-shim {
//		set pods { type ipv4_addr; flags interval; }
//		set own { type ipv4_addr; flags interval; }
//		set others { type ipv4_addr; flags interval; }
//		chain prerouting {
//			type filter hook prerouting priority raw;
//			ip saddr @pods ip daddr @others fib daddr oifname "eth0" notrack
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat;
//			ip saddr @pods ip daddr != @own masquerade fully-random
//		}
//		chain output {
//			type filter hook output priority filter;
//			oifname "fairlead-shim" icmp type redirect drop
//		}
//	}
//
// The first chain: what goes to another node on the pod's own link is answered straight
// to the pod. Connection tracking would see one half of it, and take it for invalid.
//
// The last chain: a pod that asks for a virtual IP of which the backend is on
// its own link would be told to go there directly, and believe it.
type table struct {
	conn *nftables.Conn
	have []string // what was last written, one a family; nil: the kernel may have anything
}

func openTable() (*table, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err == nil {
		_, err = conn.ListTables()
	}
	if err != nil {
		return nil, fmt.Errorf("open nftables, which the macvlan shim needs: %w", err)
	}
	return &table{conn: conn}, nil
}

func (t *table) close() { _ = t.conn.CloseLasting() }

// sync writes what differs from the last time, and what somebody has removed.
func (t *table) sync(w Wanted) error {
	var want []string
	for _, is4 := range []bool{true, false} {
		want = append(want, fmt.Sprint(w.Master, of(w.Blocks, is4), of(w.Own, is4), of(w.Others, is4)))
	}
	there, err := t.there()
	if err != nil {
		return err
	}
	if there && slices.Equal(t.have, want) {
		return nil
	}
	t.have = nil
	for _, is4 := range []bool{true, false} {
		if err := t.write(is4, w); err != nil {
			return fmt.Errorf("queue rules of the macvlan shim: %w", err)
		}
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("write rules of the macvlan shim to nftables: %w", err)
	}
	t.have = want
	return nil
}

// there says whether both tables are.
func (t *table) there() (bool, error) {
	tables, err := t.conn.ListTables()
	if err != nil {
		return false, fmt.Errorf("list tables of nftables: %w", err)
	}
	n := 0
	for _, other := range tables {
		if other.Name == Name && (other.Family == nftables.TableFamilyIPv4 || other.Family == nftables.TableFamilyIPv6) {
			n++
		}
	}
	return n == 2, nil
}

// of are the ranges of a family, none of which is in another.
func of(prefixes []netip.Prefix, is4 bool) []netip.Prefix {
	kept := slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool { return p.Addr().Is4() != is4 })
	slices.SortFunc(kept, netip.Prefix.Compare) // a range goes before those in it
	return slices.CompactFunc(kept, func(a, b netip.Prefix) bool { return a.Overlaps(b) })
}

// header says where in an IP header the addresses are.
type header struct {
	family                      nftables.TableFamily
	kind                        nftables.SetDatatype
	source, destination, length uint32
	icmp, redirect              byte
}

var (
	ipv4 = header{nftables.TableFamilyIPv4, nftables.TypeIPAddr, 12, 16, 4, unix.IPPROTO_ICMP, 5}      // RFC 791, RFC 792
	ipv6 = header{nftables.TableFamilyIPv6, nftables.TypeIP6Addr, 8, 24, 16, unix.IPPROTO_ICMPV6, 137} // RFC 8200, RFC 4861
)

// write queues the whole table of a family. It is removed first, and before that
// added, so that there is one to remove: a transaction is one step.
func (t *table) write(is4 bool, w Wanted) error {
	h := ipv6
	if is4 {
		h = ipv4
	}
	table := &nftables.Table{Name: Name, Family: h.family}
	t.conn.AddTable(table)
	t.conn.DelTable(table)
	t.conn.AddTable(table)
	podSet := &nftables.Set{Table: table, ID: 1, Name: "pods", KeyType: h.kind, Interval: true}
	ownSet := &nftables.Set{Table: table, ID: 2, Name: "own", KeyType: h.kind, Interval: true}
	otherSet := &nftables.Set{Table: table, ID: 3, Name: "others", KeyType: h.kind, Interval: true}
	err := errors.Join(
		t.conn.AddSet(podSet, elements(of(w.Blocks, is4))), t.conn.AddSet(ownSet, elements(of(w.Own, is4))),
		t.conn.AddSet(otherSet, elements(of(w.Others, is4))))
	if err != nil {
		return err
	}
	prerouting := t.conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	postrouting := t.conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	output := t.conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	t.conn.AddRule(&nftables.Rule{Table: table, Chain: prerouting, Exprs: h.notrack(podSet, otherSet, w.Master)})
	t.conn.AddRule(&nftables.Rule{Table: table, Chain: postrouting, Exprs: h.masquerade(podSet, ownSet)})
	t.conn.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: h.dropRedirects()})
	return nil
}

// match is the start of a rule for what comes from an address in one set and goes to
// one in another, or with not to none in it.
func (h header) match(from, to *nftables.Set, not bool) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: h.source, Len: h.length},
		&expr.Lookup{SourceRegister: 1, SetName: from.Name, SetID: from.ID},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: h.destination, Len: h.length},
		&expr.Lookup{SourceRegister: 1, SetName: to.Name, SetID: to.ID, Invert: not},
	}
}

func (h header) notrack(pods, others *nftables.Set, master string) []expr.Any {
	return append(h.match(pods, others, false),
		&expr.Fib{Register: 1, FlagDADDR: true, ResultOIFNAME: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: interfaceName(master)},
		&expr.Notrack{})
}

func (h header) masquerade(pods, own *nftables.Set) []expr.Any {
	return append(h.match(pods, own, true), &expr.Masq{FullyRandom: true})
}

// interfaceName is a name as rules have it: of IFNAMSIZ bytes.
func interfaceName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func (h header) dropRedirects() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: interfaceName(Name)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{h.icmp}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{h.redirect}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// elements are a set's in the kernel's form: where a range begins, and where what
// is not in it does, unless nothing comes after it. Ranges that touch are told
// apart by the kernel, those that overlap are not there: blocks do not.
func elements(ranges []netip.Prefix) []nftables.SetElement {
	var out []nftables.SetElement
	for _, p := range ranges {
		out = append(out, nftables.SetElement{Key: p.Addr().AsSlice()})
		if after := last(p).Next(); after.IsValid() {
			out = append(out, nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	return out
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// remove removes the tables.
func (t *table) remove() error {
	t.have = nil
	for _, h := range []header{ipv4, ipv6} {
		table := &nftables.Table{Name: Name, Family: h.family}
		t.conn.AddTable(table)
		t.conn.DelTable(table)
	}
	if err := t.conn.Flush(); err != nil {
		return fmt.Errorf("remove rules of the macvlan shim: %w", err)
	}
	return nil
}
