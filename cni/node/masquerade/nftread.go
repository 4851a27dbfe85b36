package masquerade

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// isRight says whether the kernel has of a table exactly what is wanted.
func (n *NFTables) isRight(t nftTable, want content) (bool, error) {
	tables, err := n.conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	there := slices.ContainsFunc(tables, func(other *nftables.Table) bool { return other.Name == nftName })
	if !there || len(t.pods) == 0 {
		return !there && len(t.pods) == 0, nil
	}
	right, err := n.hasChains(t, t.chains(want))
	if err == nil && right {
		right, err = n.hasRanges(t, want)
	}
	if errors.Is(err, unix.ENOENT) { // it goes while it is looked at
		return false, nil
	}
	return right, err
}

// hasChains says whether there are these chains, with these rules in them and no
// others.
func (n *NFTables) hasChains(t nftTable, want []nftChain) (bool, error) {
	chains, err := n.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != nftName })
	if len(chains) != len(want) {
		return false, nil
	}
	for _, c := range want {
		i := slices.IndexFunc(chains, func(is *nftables.Chain) bool { return isLike(is, c.Chain) })
		if i < 0 {
			return false, nil
		}
		rules, err := n.conn.GetRules(t.Table, chains[i])
		if err != nil {
			return false, fmt.Errorf("list rules: %w", err)
		}
		same := slices.EqualFunc(rules, c.rules, func(is *nftables.Rule, want []expr.Any) bool {
			return reflect.DeepEqual(plain(is.Exprs), plain(want))
		})
		if !same {
			return false, nil
		}
	}
	return true, nil
}

func isLike(c, want *nftables.Chain) bool {
	return c.Name == want.Name && c.Type == want.Type && same(c.Hooknum, want.Hooknum) && same(c.Priority, want.Priority)
}

func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }

// plain leaves out by what number a set is called inside one transaction.
func plain(exprs []expr.Any) []expr.Any {
	var out []expr.Any
	for _, e := range exprs {
		if lookup, ok := e.(*expr.Lookup); ok {
			bare := *lookup
			bare.SetID = 0
			e = &bare
		}
		out = append(out, e)
	}
	return out
}

// hasRanges says whether there are the sets that are wanted, with these ranges in
// them and no others.
func (n *NFTables) hasRanges(t nftTable, want content) (bool, error) {
	sets, err := n.conn.GetSets(t.Table)
	if err != nil || len(sets) != len(want.lengths) {
		return false, err
	}
	for length, count := range want.lengths {
		set := t.set(length)
		if !slices.ContainsFunc(sets, func(is *nftables.Set) bool { return is.Name == set.Name }) {
			return false, nil
		}
		elements, err := n.conn.GetSetElements(set)
		if err != nil {
			return false, fmt.Errorf("list set %s: %w", set.Name, err)
		}
		for _, e := range elements {
			addr, _ := netip.AddrFromSlice(e.Key)
			if _, ok := want.ranges[netip.PrefixFrom(addr, length)]; !ok {
				return false, nil
			}
		}
		if len(elements) != count {
			return false, nil
		}
	}
	return true, nil
}
