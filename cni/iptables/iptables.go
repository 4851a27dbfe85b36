// Package iptables masquerades what pods send out of the cluster, on nodes whose
// kernel has no nftables or whose configuration asks for iptables. It does what
// package nft does, with a rule for each of a pod's addresses, because iptables
// has no sets of its own:
//
//	*nat
//	-A POSTROUTING -j FLCNI-MASQ
//	-A FLCNI-MASQ -s 10.9.0.2/32 -m comment --comment "net/pod/eth0" -j FLCNI-MASQ-5ad…-0c2…
//	-A FLCNI-MASQ-5ad…-0c2… -d 10.9.0.0/24 -j RETURN
//	-A FLCNI-MASQ-5ad…-0c2… -d 224.0.0.0/4 -j RETURN
//	-A FLCNI-MASQ-5ad…-0c2… -j MASQUERADE
//
// The comment is the owner, by which DEL and GC find a rule. A chain is for all
// pods of a network with the same addresses to spare. Rules of others are not
// touched.
package iptables

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/cni/host/command"
	"github.com/fairlead/fairlead/cni/mode"
)

// podChain has a rule for every address of a pod. Its name must not begin with
// FAIRLEAD-: chains of that name are the proxy's, which deletes those that it
// does not know.
const podChain = "FLCNI-MASQ"

// family is iptables for one version of IP.
type family struct {
	program   string // iptables or ip6tables
	multicast netip.Prefix
}

var families = []family{
	{"iptables", netip.MustParsePrefix("224.0.0.0/4")},
	{"ip6tables", netip.MustParsePrefix("ff00::/8")},
}

func (f family) is(addr netip.Addr) bool { return addr.Is4() == f.multicast.Addr().Is4() }

// Masquerade has what a pod sends leave the node with the node's address, except
// to what is exempt and to multicast groups. When it fails it leaves nothing. It
// reports whether it had to make what all pods need for that.
func Masquerade(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) (made bool, err error) {
	err = eachWith(pod, func(f family, own []netip.Addr) error {
		first, err := f.masquerade(owner, own, exempt)
		made = made || first
		return err
	})
	if err != nil {
		return false, errors.Join(fmt.Errorf("masquerade %s: %w", owner, err), Stop(owner))
	}
	return made, nil
}

// Verify returns, in words, what differs from what Masquerade makes. The error
// wraps exec.ErrNotFound if there is no iptables.
func Verify(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) (differences []string, err error) {
	err = eachWith(pod, func(f family, own []netip.Addr) error {
		present, err := f.rules()
		for _, rule := range f.missing(present, owner, own, exempt) {
			differences = append(differences, fmt.Sprintf("%s has no rule %s in table nat", f.program, rule))
		}
		return err
	})
	return differences, err
}

// Repair makes what is missing of what Masquerade makes. Addresses that another
// pod has are left to it.
func Repair(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) error {
	return eachWith(pod, func(f family, own []netip.Addr) error {
		present, err := f.rules()
		if err != nil {
			return err
		}
		own = slices.DeleteFunc(own, func(a netip.Addr) bool { return f.isOthers(present, owner, a) })
		if len(own) == 0 || len(f.missing(present, owner, own, exempt)) == 0 {
			return nil
		}
		if _, err := f.masquerade(owner, own, exempt); err != nil {
			return fmt.Errorf("repair masquerade of %s: %w", owner, err)
		}
		return nil
	})
}

// eachWith does something with the families that a pod has addresses of.
func eachWith(pod []netip.Addr, do func(f family, own []netip.Addr) error) error {
	for _, f := range families {
		own := slices.DeleteFunc(slices.Clone(pod), func(a netip.Addr) bool { return !f.is(a) })
		if len(own) == 0 {
			continue
		}
		if err := do(f, own); err != nil {
			return err
		}
	}
	return nil
}

// missing are the rules of a pod that are not present.
func (f family) missing(present []string, owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) []string {
	wanted := append([]string{jump}, f.networkRules(owner.Network, exempt)...)
	missing := slices.DeleteFunc(wanted, func(rule string) bool { return slices.Contains(present, rule) })
	for _, addr := range pod {
		source, target := f.source(addr), " -j "+networkChain(owner.Network, exempt)
		if !slices.ContainsFunc(present, func(rule string) bool {
			comment, _ := commentOf(rule)
			return strings.HasPrefix(rule, source) && strings.HasSuffix(rule, target) && comment == owner.String()
		}) {
			missing = append(missing, source+"… "+strings.TrimSpace(target))
		}
	}
	return missing
}

// isOthers reports whether the rule of an address is another pod's.
func (f family) isOthers(present []string, owner mode.Owner, addr netip.Addr) bool {
	return slices.ContainsFunc(present, func(rule string) bool {
		comment, ok := commentOf(rule)
		return ok && strings.HasPrefix(rule, f.source(addr)) && comment != owner.String()
	})
}

// Stop takes back Masquerade. It succeeds if there is nothing to take back.
func Stop(owner mode.Owner) error {
	return remove(func(comment string) bool { return comment == owner.String() })
}

// StopReference takes back what the reference plugin bridge has made for a pod with
// ipMasq, by iptables, which is
//
//	-A POSTROUTING -s 10.9.0.2/32 -m comment --comment "name: \"net\" id: \"pod\"" -j CNI-5ad…
//
// and that chain. It succeeds if there is nothing to take back.
func StopReference(network, containerID string) error {
	comment := fmt.Sprintf("name: %q id: %q", network, containerID)
	return each(func(f family) error { return f.stopReference(comment) })
}

func (f family) stopReference(comment string) error {
	present, err := f.rules()
	if err != nil {
		return err
	}
	var lines, chains []string
	for _, rule := range present {
		got, _ := commentIn(rule)
		chain := rule[strings.LastIndex(rule, " ")+1:]
		if got != comment || !strings.HasPrefix(rule, "-A POSTROUTING ") || !strings.HasPrefix(chain, "CNI-") {
			continue
		}
		lines = append(lines, deletion(rule))
		if !slices.Contains(chains, chain) {
			chains = append(chains, chain)
		}
	}
	for _, chain := range chains {
		lines = append(lines, "-F "+chain, "-X "+chain)
	}
	if len(lines) == 0 {
		return nil
	}
	return f.restore(lines)
}

// Collect deletes what belongs to pods of a network that are not to be kept.
func Collect(network string, keep []mode.Owner) error {
	kept := make(map[string]bool, len(keep))
	for _, o := range keep {
		kept[o.String()] = true
	}
	stale := func(comment string) bool { return mode.InNetwork(comment, network) && !kept[comment] }
	if err := remove(stale); err != nil {
		return err
	}
	return each(func(f family) error { return f.collectChains(network) })
}

// collectChains deletes the chains of a network that no pod uses.
func (f family) collectChains(network string) error {
	present, err := f.rules()
	if err != nil {
		return err
	}
	used := func(chain string) bool {
		return slices.ContainsFunc(present, func(rule string) bool { return strings.HasSuffix(rule, " -j "+chain) })
	}
	var lines []string
	for _, line := range present {
		chain, found := strings.CutPrefix(line, "-N ")
		if found && strings.HasPrefix(chain, chainPrefix(network)) && !used(chain) {
			lines = append(lines, "-F "+chain, "-X "+chain)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return f.restore(lines)
}

// attempts is how often something is done again that others got in the way of.
const attempts = 10

// masquerade adds what is not there. Between looking and changing others may add
// the same; then the change fails as a whole and is worked out again.
func (f family) masquerade(owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) (made bool, err error) {
	for range attempts {
		var present []string
		if present, err = f.rules(); err != nil {
			return false, err
		}
		if err = f.restore(f.additions(present, owner, pod, exempt)); err == nil {
			return !slices.Contains(present, jump) || !f.isComplete(present, owner.Network, exempt), nil
		}
	}
	return false, err
}

// isComplete reports whether all rules of a network's chain are present.
func (f family) isComplete(present []string, network string, exempt []netip.Prefix) bool {
	return !slices.ContainsFunc(f.networkRules(network, exempt), func(rule string) bool { return !slices.Contains(present, rule) })
}

// jump leads to the pods' rules.
const jump = "-A POSTROUTING -j " + podChain

// networkRules are those of a network's chain.
func (f family) networkRules(network string, exempt []netip.Prefix) []string {
	chain := networkChain(network, exempt)
	var rules []string
	for _, prefix := range append(slices.Clone(exempt), f.multicast) {
		if f.is(prefix.Addr()) && prefix.Bits() != 0 {
			rules = append(rules, fmt.Sprintf("-A %s -d %s -j RETURN", chain, prefix))
		} else if f.is(prefix.Addr()) {
			rules = append(rules, fmt.Sprintf("-A %s -j RETURN", chain)) // as iptables prints it
		}
	}
	return append(rules, fmt.Sprintf("-A %s -j MASQUERADE", chain))
}

// source is what the rule of an address begins with.
func (f family) source(addr netip.Addr) string {
	return fmt.Sprintf("-A %s -s %s ", podChain, netip.PrefixFrom(addr, addr.BitLen()))
}

// additions are the lines for iptables-restore that add a pod to the rules
// present.
func (f family) additions(present []string, owner mode.Owner, pod []netip.Addr, exempt []netip.Prefix) []string {
	var lines []string
	if !slices.Contains(present, "-N "+podChain) {
		lines = append(lines, "-N "+podChain)
	}
	if !slices.Contains(present, jump) {
		lines = append(lines, jump)
	}
	chain := networkChain(owner.Network, exempt)
	if !slices.Contains(present, "-N "+chain) {
		lines = append(lines, "-N "+chain)
	}
	if !f.isComplete(present, owner.Network, exempt) { // it is new, or somebody flushed it
		lines = append(append(lines, "-F "+chain), f.networkRules(owner.Network, exempt)...)
	}
	for _, addr := range pod {
		source := f.source(addr)
		for _, rule := range present {
			if strings.HasPrefix(rule, source) { // of a pod whose DEL was lost
				lines = append(lines, deletion(rule))
			}
		}
		lines = append(lines, fmt.Sprintf("%s-m comment --comment %s -j %s", source, quote(owner), chain))
	}
	return lines
}

// networkChain is named by what is in it, so that a chain never has to change
// while pods use it.
func networkChain(network string, exempt []netip.Prefix) string {
	return chainPrefix(network) + hash(fmt.Sprint(exempt))
}

// chainPrefix is what the chains of a network have in common.
func chainPrefix(network string) string { return podChain + "-" + hash(network) + "-" }

// hash is as short as it has to be: names of chains have at most 28 characters.
func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:7]
}

// remove deletes the pods' rules whose comments say so, of both families.
func remove(gone func(comment string) bool) error {
	return each(func(f family) error { return f.remove(gone) })
}

// each does something with the families that the node has the program for: there
// is nothing to remove of another.
func each(do func(family) error) error {
	var failed []error
	for _, f := range families {
		if err := do(f); !errors.Is(err, exec.ErrNotFound) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func (f family) remove(gone func(comment string) bool) (err error) {
	for range attempts {
		var present []string
		if present, err = f.rules(); err != nil {
			return err
		}
		var lines []string
		for _, rule := range present {
			if comment, ok := commentOf(rule); ok && gone(comment) {
				lines = append(lines, deletion(rule))
			}
		}
		if len(lines) == 0 {
			return nil
		}
		if err = f.restore(lines); err == nil {
			return nil
		}
	}
	return err
}

// deletion is the line that deletes a rule, given the one that adds it.
func deletion(rule string) string { return "-D" + strings.TrimPrefix(rule, "-A") }

// commentOf is the comment of a pod's rule.
func commentOf(rule string) (string, bool) {
	if !strings.HasPrefix(rule, "-A "+podChain+" ") {
		return "", false
	}
	return commentIn(rule)
}

// commentIn is the comment of a rule. iptables quotes it only if it has to.
func commentIn(rule string) (string, bool) {
	_, after, found := strings.Cut(rule, "--comment ")
	if comment, quoted := unquote(after); quoted {
		return comment, true
	}
	comment, _, _ := strings.Cut(after, " ")
	return comment, found
}

// What iptables quotes has a backslash before each backslash and quotation mark,
// ' too (xtables_save_string), and is read with one before any character. So it is
// not what strconv quotes.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// unquote reads the quotation that text begins with. It is not a regular
// expression: compiling one would be part of every start of the program.
func unquote(text string) (unquoted string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		return "", false
	}
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		if text[i] == '"' {
			return b.String(), true
		}
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		b.WriteByte(text[i])
	}
	return "", false
}

func quote(o mode.Owner) string { return `"` + escape.Replace(o.String()) + `"` }

// rules are the chains and rules of table nat, as iptables -S prints them.
func (f family) rules() ([]string, error) {
	out, err := f.run("", f.program, "-w", "-t", "nat", "-S")
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSpace(out), "\n"), nil
}

// restore makes changes to table nat in one transaction.
func (f family) restore(lines []string) error {
	input := "*nat\n" + strings.Join(lines, "\n") + "\nCOMMIT\n"
	_, err := f.run(input, f.program+"-restore", "-w", "--noflush")
	return err
}

// within is how long a command may take, which may have to wait for others to give the
// lock of xtables free: runtimes wait for an attachment two minutes.
const within = time.Minute

func (f family) run(input, program string, args ...string) (string, error) {
	out, err := command.Command{Name: program, Args: args, Input: command.Text(input), Within: within}.Run(context.Background())
	return string(out), err
}
