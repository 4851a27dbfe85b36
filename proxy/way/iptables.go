package way

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/xtables"
)

// legacyRules are those of the nat table of one family.
type legacyRules map[string][][]string // chain → rules → words

// throughLegacy leads a packet through the nat table of iptables-legacy, which
// nftables does not know. It reports whether a rule there gives it another source.
func (r *rules) throughLegacy(g *passage) (bool, error) {
	is6 := g.Src.Is6()
	if _, known := r.legacy[is6]; !known {
		read, err := readLegacy(r.ctx, is6)
		if err != nil {
			return false, err
		}
		r.legacy[is6] = read
	}
	return legacy{g, r.legacy[is6]}.chain("POSTROUTING", 0) == rewrite, nil
}

func readLegacy(ctx context.Context, is6 bool) (legacyRules, error) {
	command := "iptables-legacy-save"
	if is6 {
		command = "ip6tables-legacy-save"
	}
	tables, err := xtables.Tables(is6)
	if err == nil && !slices.Contains(tables, "nat") {
		return nil, nil // the command would make the table that it reads
	}
	var out []byte
	if err == nil {
		out, err = exec.CommandContext(ctx, command, "-t", "nat").Output()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("a rule of iptables-legacy, which is in use here and not installed,")
	}
	if err != nil {
		return nil, fmt.Errorf("a rule of iptables-legacy, which cannot be read (%w),", err)
	}
	return parseLegacy(string(out)), nil
}

// legacy follows a packet through the rules of a table.
type legacy struct {
	*passage
	chains legacyRules
}

// parseLegacy reads rules as iptables-save prints them.
func parseLegacy(saved string) legacyRules {
	rules := legacyRules{}
	for line := range strings.Lines(saved) {
		if name, ok := strings.CutPrefix(line, ":"); ok {
			name, _, _ = strings.Cut(name, " ")
			rules[name] = nil
		}
		if words := wordsOf(line); len(words) > 2 && words[0] == "-A" {
			rules[words[1]] = append(rules[words[1]], words[2:])
		}
	}
	return rules
}

// wordsOf divides a line at spaces that are not between quotes.
func wordsOf(line string) []string {
	var words []string
	for i, part := range strings.Split(strings.TrimSpace(line), `"`) {
		if i%2 == 1 {
			words = append(words, part)
			continue
		}
		words = append(words, strings.Fields(part)...)
	}
	return words
}

func (l legacy) chain(name string, depth int) verdict {
	if strings.HasPrefix(name, proxys) || depth > deepest {
		return goOn
	}
	for _, words := range l.chains[name] {
		if said := l.rule(name, words, depth); said != goOn {
			return said
		}
	}
	return goOn
}

// clause is one condition of a rule, or where it leads.
type clause struct {
	option string
	not    bool
	values []string
}

func clausesOf(words []string) []clause {
	var all []clause
	not := false
	for _, w := range words {
		switch {
		case w == "!":
			not = true
		case strings.HasPrefix(w, "-"):
			all, not = append(all, clause{w, not, nil}), false
		case len(all) > 0:
			last := &all[len(all)-1]
			last.values = append(last.values, w)
		}
	}
	return all
}

func (c clause) value() string { return strings.Join(c.values, " ") }

// rule is what a rule says of the packet.
func (l legacy) rule(chain string, words []string, depth int) verdict {
	target, unknown := clause{}, ""
	var destination netip.Prefix
	for _, c := range clausesOf(words) {
		if c.option == "-j" || c.option == "-g" {
			target = c
			break // what follows is the target's
		}
		holds, known := l.holds(c)
		switch {
		case !known:
			unknown = strings.TrimLeft(c.option, "-")
		case holds == c.not:
			return goOn
		case c.option == "-d" && !c.not:
			destination, _ = netip.ParsePrefix(c.value())
		}
	}
	where := "iptables-legacy, chain " + chain
	_, leads := l.chains[target.value()]
	gives := target.value() == "MASQUERADE" || target.value() == "SNAT" || target.value() == "NETMAP"
	ends := target.value() == "RETURN" || target.value() == "ACCEPT"
	switch {
	case unknown != "" && (leads || gives || ends) && !strings.HasPrefix(target.value(), proxys):
		l.doubt(where, unknown, gives, leads)
	case unknown != "":
	case gives:
		l.by = where
		return rewrite
	case ends:
		if destination.IsValid() {
			l.exempt, l.exempts = destination, where
		}
		return map[string]verdict{"RETURN": back, "ACCEPT": accept}[target.value()]
	case leads:
		return l.lead(target, depth)
	}
	return goOn
}

// lead follows the packet into another chain.
func (l legacy) lead(target clause, depth int) verdict {
	said := l.chain(target.value(), depth+1)
	if said != back && said != goOn {
		return said
	}
	if target.option == "-g" {
		return back
	}
	return goOn
}

// holds says whether a condition does, as far as that is known.
func (l legacy) holds(c clause) (holds, known bool) {
	switch c.option {
	case "-s", "-d":
		addr := l.Src
		if c.option == "-d" {
			addr = l.Dst.Addr()
		}
		prefix, err := netip.ParsePrefix(c.value())
		return prefix.Contains(addr), err == nil
	case "-i", "-o":
		device := l.in
		if c.option == "-o" {
			device = l.out
		}
		begin, any := strings.CutSuffix(c.value(), "+")
		return device == c.value() || any && strings.HasPrefix(device, begin), true
	case "-p":
		number, ok := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP, "icmp": unix.IPPROTO_ICMP}[c.value()]
		return number == l.Protocol, ok && l.Protocol != 0
	case "--dport":
		return c.value() == strconv.Itoa(int(l.Dst.Port())), l.Dst.Port() != 0 && !strings.Contains(c.value(), ":")
	case "--mark": // VALUE/MASK, of a packet that has none
		value, _, _ := strings.Cut(c.value(), "/")
		number, err := strconv.ParseUint(value, 0, 32)
		return number == 0, err == nil
	case "-m", "--comment":
		return !c.not, true
	}
	return false, false
}
