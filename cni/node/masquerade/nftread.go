package masquerade

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// isRight says whether the kernel has of a table exactly what is wanted.
func (n *NFTables) isRight(t nftTable, want Ranges) (bool, error) {
	tables, err := n.conn.ListTablesOfFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	there := slices.ContainsFunc(tables, func(other *nftables.Table) bool { return other.Name == nftName })
	if !there || len(want.Pods) == 0 {
		return !there && len(want.Pods) == 0, nil
	}
	right, err := n.hasRule(t)
	if err == nil && right {
		right, err = n.hasElements(t.pods, elements(want.Pods))
	}
	if err == nil && right {
		right, err = n.hasElements(t.cluster, elements(want.Cluster))
	}
	if errors.Is(err, unix.ENOENT) { // it goes while it is looked at
		return false, nil
	}
	return right, err
}

// hasRule says whether there is one chain, with our rule in it and no other.
func (n *NFTables) hasRule(t nftTable) (bool, error) {
	chains, err := n.conn.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return false, fmt.Errorf("list chains: %w", err)
	}
	chains = slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != nftName })
	if len(chains) != 1 || !isLike(chains[0], t.chain()) {
		return false, nil
	}
	rules, err := n.conn.GetRules(t.Table, chains[0])
	if err != nil {
		return false, fmt.Errorf("list rules: %w", err)
	}
	if len(rules) != 1 {
		return false, nil
	}
	return reflect.DeepEqual(withoutIDs(rules[0].Exprs), withoutIDs(t.rule())), nil
}

func isLike(c, want *nftables.Chain) bool {
	return c.Name == want.Name && c.Type == want.Type && c.Hooknum != nil && *c.Hooknum == *want.Hooknum &&
		c.Priority != nil && *c.Priority == *want.Priority
}

// withoutIDs leaves out by what number a set is called inside one transaction.
func withoutIDs(exprs []expr.Any) []expr.Any {
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

func (n *NFTables) hasElements(set *nftables.Set, want []nftables.SetElement) (bool, error) {
	have, err := n.conn.GetSetElements(set)
	if err != nil {
		return false, fmt.Errorf("list set %s: %w", set.Name, err)
	}
	slices.SortFunc(have, compareElements)
	want = slices.SortedFunc(slices.Values(want), compareElements)
	return slices.EqualFunc(have, want, func(a, b nftables.SetElement) bool { return compareElements(a, b) == 0 }), nil
}

// compareElements: where one range ends and the next begins there are two of the
// same key.
func compareElements(a, b nftables.SetElement) int {
	if c := bytes.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
		return c
	}
	if a.IntervalEnd {
		return -1
	}
	return 1
}
