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
	var s script
	for _, table := range slices.Sorted(maps.Keys(rs)) {
		if part := newSection(table, nil, rs[table]); len(part.differ) > 0 {
			s = append(s, part)
		}
	}
	return s.String()
}

// count says how many rules each table has.
func (rs Ruleset) count() map[string]int {
	n := map[string]int{}
	for table, chains := range rs {
		for _, rules := range chains {
			n[table] += len(rules)
		}
	}
	return n
}

func total(byTable map[string]int) (n int) {
	for _, rules := range byTable {
		n += rules
	}
	return n
}

// parse reads what iptables-save printed and keeps what is ours: chains with our
// prefix, and the rules elsewhere that lead to them.
func parse(saved []byte) (Ruleset, error) {
	rs := Ruleset{}
	chains := Chains{} // of no table
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
				rule = strings.Replace(rule, counting+" ", counting, 1) // as iptables 1.8.9 prints it
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

// script is the input of iptables-restore --noflush that turns one rule set into
// another. Only chains that differ are written. It is as long as the rule sets
// are, so it is never there as a whole: it is made while it is read.
type script []section

// section turns one table's have into want.
type section struct {
	table      string
	have, want Chains
	differ     []string // the chains that do, sorted
}

// newScript turns have into want; it is empty when they are the same.
//
// A Service that gets its first endpoint stops to be rejected in filter and
// starts to be translated in nat, and each table changes at an instant of its
// own. Between the two a packet must find one of the rules: so filter first
// becomes the union of old and new, then nat changes, then filter is final.
// (Rejecting what nat translates is harmless: filter sees the new destination.)
func newScript(have, want Ruleset) script {
	both := union(have[filter], want[filter])
	var s script
	for _, part := range []section{
		newSection(filter, have[filter], both),
		newSection(nat, have[nat], want[nat]),
		newSection(filter, both, want[filter]),
	} {
		if len(part.differ) > 0 {
			s = append(s, part)
		}
	}
	return s
}

func newSection(table string, have, want Chains) section {
	s := section{table: table, have: have, want: want}
	for chain, rules := range want {
		if old, existed := have[chain]; !existed || !slices.Equal(old, rules) {
			s.differ = append(s.differ, chain)
		}
	}
	for chain := range have {
		if _, wanted := want[chain]; !wanted {
			s.differ = append(s.differ, chain)
		}
	}
	slices.Sort(s.differ)
	return s
}

// inSteps divides sections of more chains than one step is to have. That is for
// iptables-nft, which for each line looks its chain up in a sorted list of all that
// were named since the last COMMIT (as of 1.8.9), so that one step of 10,000 chains
// takes it five times as long as many small ones do.
//
// What packets meet changes in one step all the same.
func (s script) inSteps(chains int) script {
	var out script
	for _, part := range s {
		if len(part.differ) <= chains {
			out = append(out, part)
			continue
		}
		fresh, meeting, stale := part.apart()
		out = slices.Concat(out, part.divided(fresh, chains), part.divided(meeting, len(meeting)), part.divided(stale, chains))
	}
	return out
}

// apart tells the chains that differ by when they may change: new ones before anything
// leads to them, each after those that it leads to itself; those that packets meet; and
// those that go, each before those that it led to.
//
// The order of the new ones is that in which the kernel will follow the jumps of the
// table at every commit, which takes it a third less time if it finds them in this
// order in memory as well.
func (s section) apart() (fresh, meeting, stale []string) {
	begins, ends := map[string]bool{}, map[string]bool{}
	for _, chain := range s.differ {
		_, there := s.have[chain]
		_, wanted := s.want[chain]
		switch {
		case !ours(chain) || there && wanted:
			meeting = append(meeting, chain)
		case wanted:
			begins[chain] = true
		default:
			ends[chain] = true
		}
	}
	fresh = slices.DeleteFunc(s.want.bottomUp(), func(chain string) bool { return !begins[chain] })
	stale = slices.DeleteFunc(s.have.bottomUp(), func(chain string) bool { return !ends[chain] })
	slices.Reverse(stale)
	return fresh, meeting, stale
}

// divided makes sections of some chains each.
func (s section) divided(differ []string, chains int) script {
	var out script
	for part := range slices.Chunk(differ, max(chains, 1)) {
		out = append(out, section{table: s.table, have: s.have, want: s.want, differ: part})
	}
	return out
}

// bottomUp are all chains, each after those that it leads to. Where packets come from,
// the built-in chains, is where it begins to look.
func (c Chains) bottomUp() []string {
	var out []string
	seen := map[string]bool{}
	var visit func(chain string)
	visit = func(chain string) {
		if seen[chain] {
			return
		}
		seen[chain] = true
		for _, rule := range c[chain] {
			if to := rule[strings.LastIndexByte(rule, ' ')+1:]; ours(to) {
				visit(to)
			}
		}
		out = append(out, chain)
	}
	chains := slices.Sorted(maps.Keys(c))
	for _, own := range []bool{false, true} {
		for _, chain := range chains {
			if ours(chain) == own {
				visit(chain)
			}
		}
	}
	return out
}

func (s script) writeTo(w *bufio.Writer) {
	for _, part := range s {
		part.writeTo(w)
	}
}

func (s script) String() string {
	var b strings.Builder
	w := bufio.NewWriter(&b)
	s.writeTo(w)
	_ = w.Flush()
	return b.String()
}

// count says how many rules of each table are written.
func (s script) count() map[string]int {
	n := map[string]int{}
	for _, part := range s {
		for _, chain := range part.differ {
			n[part.table] += len(part.want[chain])
		}
	}
	return n
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

// writeTo writes the section. What w cannot take, its Flush will say.
func (s section) writeTo(w *bufio.Writer) {
	write := func(words ...string) {
		for _, word := range words {
			_, _ = w.WriteString(word)
		}
	}
	write("*", s.table, "\n")
	for _, chain := range s.differ {
		if ours(chain) { // naming a chain makes it, or empties it where it exists
			write(":", chain, " - [0:0]\n")
		}
	}
	for _, chain := range s.differ {
		if !ours(chain) {
			for _, command := range hooks(chain, s.have[chain], s.want[chain]) {
				write(command, "\n")
			}
			continue
		}
		for _, rule := range s.want[chain] {
			write("-A ", chain, " ", rule, "\n")
		}
	}
	for _, chain := range s.differ {
		if _, wanted := s.want[chain]; !wanted && ours(chain) {
			write("-X ", chain, "\n")
		}
	}
	write("COMMIT\n")
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
