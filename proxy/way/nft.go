package way

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftRules are the rules of nftables, as far as somebody has asked for them.
type nftRules struct {
	conn   *nftables.Conn // nil: not open, or the kernel has none
	opened bool
	chains []*nftables.Chain
	rules  map[inTable][]*nftables.Rule // by chain
	sets   map[inTable]nftSet
}

// inTable is a name within a table of a family.
type inTable struct {
	family nftables.TableFamily
	table  string
	name   string
}

// nftSet is a set and what is in it.
type nftSet struct {
	*nftables.Set
	elements []nftables.SetElement
}

// open lists the chains.
func (n *nftRules) open() error {
	if n.opened {
		return nil
	}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		n.opened = true
		return nil // the kernel has none
	}
	n.chains, err = conn.ListChains()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // likewise
	}
	if err != nil {
		return errors.Join(err, conn.CloseLasting())
	}
	n.conn, n.opened = conn, true
	n.rules, n.sets = map[inTable][]*nftables.Rule{}, map[inTable]nftSet{}
	return nil
}

func (n *nftRules) close() {
	if n.conn != nil {
		_ = n.conn.CloseLasting()
	}
}

// rulesOf are the rules of a chain.
func (n *nftRules) rulesOf(table *nftables.Table, chain string) ([]*nftables.Rule, error) {
	at := inTable{table.Family, table.Name, chain}
	if known, ok := n.rules[at]; ok {
		return known, nil
	}
	rules, err := n.conn.GetRules(table, &nftables.Chain{Name: chain, Table: table})
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
	}
	n.rules[at] = rules
	return rules, nil
}

// set reads a set.
func (n *nftRules) set(table *nftables.Table, name string) (nftSet, error) {
	at := inTable{table.Family, table.Name, name}
	if known, ok := n.sets[at]; ok {
		return known, nil
	}
	set, err := n.conn.GetSetByName(table, name)
	if err != nil {
		return nftSet{}, fmt.Errorf("read set %s: %w", name, err)
	}
	set.Table = table
	elements, err := n.conn.GetSetElements(set)
	if err != nil {
		return nftSet{}, fmt.Errorf("list set %s: %w", name, err)
	}
	if set.Interval { // where they begin, and where those end of which the next one is not the end
		slices.SortFunc(elements, func(a, b nftables.SetElement) int { return bytes.Compare(a.Key, b.Key) })
	}
	n.sets[at] = nftSet{set, elements}
	return n.sets[at], nil
}

// throughNFTables leads a packet through the chains of nftables that can give it
// another source, those of iptables-nft among them, in the kernel's order. It reports
// whether one does.
func (r *rules) throughNFTables(g *passage) (bool, error) {
	if err := r.nft.open(); err != nil {
		return false, fmt.Errorf("nftables, which cannot be read (%w),", err)
	}
	bases := slices.DeleteFunc(slices.Clone(r.nft.chains), func(c *nftables.Chain) bool { return !g.isBase(c) })
	slices.SortStableFunc(bases, func(a, b *nftables.Chain) int { return cmp.Compare(*a.Priority, *b.Priority) })
	for _, base := range bases {
		f := &follower{passage: g, nftRules: &r.nft, table: base.Table}
		switch said, err := f.chain(base.Name, 0); {
		case err != nil:
			return false, fmt.Errorf("%s, which cannot be read (%w),", f.name(), err)
		case said == rewrite:
			return true, nil
		}
	}
	return false, nil
}

// isBase says whether a chain is where the kernel begins to look for the source.
func (g *passage) isBase(c *nftables.Chain) bool {
	return c.Type == nftables.ChainTypeNAT && c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookPostrouting && c.Priority != nil &&
		slices.Contains([]byte{unix.NFPROTO_INET, g.family()}, byte(c.Table.Family))
}

// follower follows a packet through one table of nftables.
type follower struct {
	*passage
	*nftRules
	table *nftables.Table
}

// name is the table's as nft(8) has it.
func (f *follower) name() string {
	families := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	return fmt.Sprintf("nftables table %s %s", families[f.table.Family], f.table.Name)
}

// deepest is how far chains lead to chains (NFT_JUMP_STACK_SIZE).
const deepest = 16

// chain follows the rules of a chain.
func (f *follower) chain(name string, depth int) (verdict, error) {
	if strings.HasPrefix(name, proxys) || depth > deepest {
		return goOn, nil
	}
	rules, err := f.rulesOf(f.table, name)
	if err != nil {
		return goOn, err
	}
	for _, rule := range rules {
		said, err := f.rule(name, rule.Exprs, depth)
		if err != nil || said != goOn {
			return said, err
		}
	}
	return goOn, nil
}

// rule is what a rule says of the packet.
func (f *follower) rule(chain string, exprs []expr.Any, depth int) (verdict, error) {
	m := matching{follower: f, registers: map[uint32]value{}, says: expr.Verdict{Kind: expr.VerdictContinue}}
	for _, e := range exprs {
		if err := m.step(e); err != nil {
			return goOn, err
		}
		if m.failed {
			return goOn, nil
		}
	}
	where := f.name() + ", chain " + chain
	if m.unknown != "" {
		if leads := m.says.Chain != ""; (m.gives || m.says.Kind != expr.VerdictContinue) && !strings.HasPrefix(m.says.Chain, proxys) {
			f.doubt(where, m.unknown, m.gives, leads)
		}
		return goOn, nil
	}
	if m.gives {
		f.by, f.to = where, m.source
		return rewrite, nil
	}
	return f.obey(m, depth)
}

// obey does what a rule that concerns the packet says.
func (f *follower) obey(m matching, depth int) (verdict, error) {
	switch m.says.Kind {
	case expr.VerdictReturn, expr.VerdictAccept:
		if m.destination.IsValid() {
			f.exempt, f.exempts = m.destination, f.name()
		}
		if m.says.Kind == expr.VerdictAccept {
			return accept, nil
		}
		return back, nil
	case expr.VerdictDrop:
		return drop, nil
	case expr.VerdictJump, expr.VerdictGoto:
		said, err := f.chain(m.says.Chain, depth+1)
		if said == back || said == goOn {
			said = goOn
			if m.says.Kind == expr.VerdictGoto {
				said = back // to where the chain that says so was called from
			}
		}
		return said, err
	}
	return goOn, nil
}

// find is the element that a key belongs to, nil if none is.
func (s nftSet) find(key []byte) *nftables.SetElement {
	elements := s.elements
	if !s.Interval {
		i := slices.IndexFunc(elements, func(e nftables.SetElement) bool { return bytes.Equal(e.Key, key) })
		if i < 0 {
			return nil
		}
		return &elements[i]
	}
	var last *nftables.SetElement
	for i := range elements {
		if e := &elements[i]; bytes.Compare(e.Key, key) <= 0 && (last == nil || !bytes.Equal(last.Key, e.Key) || last.IntervalEnd) {
			last = e
		}
	}
	if last == nil || last.IntervalEnd || last.KeyEnd != nil && bytes.Compare(key, last.KeyEnd) > 0 {
		return nil
	}
	return last
}

// verdictOf is what a map says of an element (linux/netfilter/nf_tables.h,
// enum nft_verdict_attributes).
func verdictOf(e *nftables.SetElement) (expr.Verdict, error) {
	var v expr.Verdict
	d, err := netlink.NewAttributeDecoder(e.Val)
	if err != nil {
		return v, fmt.Errorf("read a map: %w", err)
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind = expr.VerdictKind(int32(d.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = d.String()
		}
	}
	return v, d.Err()
}
