package iptables

import (
	"context"
	"fmt"
	"slices"

	"github.com/fairlead/fairlead/proxy/service"
)

// Differences reads the kernel's rules and says in what way they are not those of the
// Table, by Service. What is no single Service's is under the zero Name.
func (b *Backend) Differences(ctx context.Context, t *service.Table) (map[service.Name][]string, error) {
	out := map[service.Name][]string{}
	for _, f := range b.families {
		have, err := f.read(ctx)
		if err != nil {
			return nil, err
		}
		differences(Render(t, f.ipv6, f.opts), have, ownersOf(t, f.ipv6), out)
	}
	return out, nil
}

// differences adds to out those of one family.
func differences(want, have Ruleset, owners owners, out map[service.Name][]string) {
	for _, table := range []string{nat, filter} {
		for _, chain := range newSection(table, have[table], want[table]).differ {
			for _, d := range chainDifferences(want[table][chain], have[table][chain]) {
				line := "-A " + chain + " " + d.rule
				name, _ := owners.of(line) // or nobody's
				out[name] = append(out[name], fmt.Sprintf("table %s: %s: %s", table, d.what, line))
			}
		}
	}
}

// difference is a rule and what is wrong with it.
type difference struct{ what, rule string }

func chainDifferences(want, have []string) []difference {
	var out []difference
	for _, rule := range want {
		if !slices.Contains(have, rule) {
			out = append(out, difference{"missing", rule})
		}
	}
	for _, rule := range have {
		if !slices.Contains(want, rule) {
			out = append(out, difference{"there and should not be", rule})
		}
	}
	if len(out) == 0 { // else that says enough
		out = append(out, difference{"the order is another, or one is there twice, of", "…"})
	}
	return out
}
