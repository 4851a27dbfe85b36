package iptables

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// prefix is how the names of all our chains start, and of nobody else's.
const prefix = "FAIRLEAD-"

// Ruleset is what we own of one family's tables: table → Chains.
type Ruleset map[string]Chains

// Chains is what we own of one table: chain → its rules in order, each in the
// words that iptables-save prints behind "-A CHAIN ". Of a chain that is not
// ours by name (PREROUTING, …) it holds our rules only.
type Chains map[string][]string

// String prints the rule set in the form of iptables-save, sorted by chain.
func (rs Ruleset) String() string {
	var b bytes.Buffer
	for _, table := range slices.Sorted(maps.Keys(rs)) {
		writeTable(&b, table, nil, rs[table])
	}
	return b.String()
}

// parse reads what iptables-save printed and keeps what is ours: chains with our
// prefix, and the rules elsewhere that lead to them.
func parse(saved []byte) (Ruleset, error) {
	rs := Ruleset{}
	var chains Chains
	lines := bufio.NewScanner(bytes.NewReader(saved))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			chains = Chains{}
			rs[line[1:]] = chains
		case strings.HasPrefix(line, ":"+prefix):
			name, _, _ := strings.Cut(line[1:], " ")
			chains[name] = nil
		case strings.HasPrefix(line, "-A "):
			chain, rule, _ := strings.Cut(line[len("-A "):], " ")
			if ours(chain) || leadsToUs.MatchString(rule) {
				chains[chain] = append(chains[chain], rule)
			}
		}
	}
	return rs, lines.Err()
}

// leadsToUs finds rules that jump to a chain of ours: the target is the last
// word (a quoted comment ends in a quote).
var leadsToUs = regexp.MustCompile(`-[jg] ` + prefix + `[^\s"]+$`)

func ours(chain string) bool { return strings.HasPrefix(chain, prefix) }

// script is the input of iptables-restore --noflush that turns have into want;
// it is empty when they are the same. Only chains that differ are written.
//
// A Service that gets its first endpoint stops to be rejected in filter and
// starts to be translated in nat, and each table changes at an instant of its
// own. Between the two a packet must find one of the rules: so filter first
// becomes the union of old and new, then nat changes, then filter is final.
// (Rejecting what nat translates is harmless: filter sees the new destination.)
func script(have, want Ruleset) []byte {
	var b bytes.Buffer
	both := union(have[filter], want[filter])
	writeTable(&b, filter, have[filter], both)
	writeTable(&b, nat, have[nat], want[nat])
	writeTable(&b, filter, both, want[filter])
	return b.Bytes()
}

// union has the chains of both, with b's rules before those that only a has.
func union(a, b Chains) Chains {
	out := maps.Clone(b)
	if out == nil {
		out = Chains{}
	}
	for chain, rules := range a {
		onlyA := slices.DeleteFunc(slices.Clone(rules), func(rule string) bool {
			return slices.Contains(b[chain], rule)
		})
		if _, ok := b[chain]; !ok || len(onlyA) > 0 {
			out[chain] = slices.Concat(b[chain], onlyA)
		}
	}
	return out
}

// writeTable writes the section that turns one table's have into want.
func writeTable(b *bytes.Buffer, table string, have, want Chains) {
	var chains, rules, deletions []string
	for _, chain := range slices.Sorted(maps.Keys(merged(have, want))) {
		old, existed := have[chain]
		now, wanted := want[chain]
		switch {
		case existed == wanted && slices.Equal(old, now):
		case !ours(chain):
			rules = append(rules, hooks(chain, old, now)...)
		default: // naming a chain makes it, or empties it where it exists
			chains = append(chains, ":"+chain+" - [0:0]")
			for _, rule := range now {
				rules = append(rules, "-A "+chain+" "+rule)
			}
			if !wanted {
				deletions = append(deletions, "-X "+chain)
			}
		}
	}
	if len(chains)+len(rules) == 0 {
		return
	}
	fmt.Fprintf(b, "*%s\n", table)
	for _, line := range slices.Concat(chains, rules, deletions) {
		b.WriteString(line)
		b.WriteByte('\n')
	}
	b.WriteString("COMMIT\n")
}

// hooks are the commands that give a chain of others the rules now instead of
// the rules old, which are not all that the chain has. They go first in it, in
// their order, so that no rule of others decides before them.
func hooks(chain string, old, now []string) []string {
	var out []string
	for _, rule := range old {
		out = append(out, "-D "+chain+" "+rule)
	}
	for i, rule := range now {
		out = append(out, fmt.Sprintf("-I %s %d %s", chain, i+1, rule))
	}
	return out
}

func merged(a, b Chains) Chains {
	out := maps.Clone(a)
	if out == nil {
		out = Chains{}
	}
	maps.Copy(out, b)
	return out
}
