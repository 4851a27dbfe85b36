package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/proxy/service"
)

// The tables, and the chains that every rule set has.
//
//	nat     PREROUTING, OUTPUT ──▶ SERVICES ──tree──▶ pool (P) ── in turn ──▶ DNAT
//	                                          ├─────▶ OUTSIDE ──▶ MASQ   marks who is to be masqueraded
//	                                          └─────▶ frontend (F), where senders are told apart
//	        POSTROUTING ──▶ POSTROUTING                                  masquerades
//	filter  FORWARD, OUTPUT (new flows) ──▶ REJECT ──tree──▶ REJECT, DROP
//	        FORWARD ──▶ FORWARD                                          lets through what we translated
const (
	nat    = "nat"
	filter = "filter"

	chainServices    = prefix + "SERVICES"
	chainOutside     = prefix + "OUTSIDE"
	chainMasq        = prefix + "MASQ"
	chainPostrouting = prefix + "POSTROUTING"
	chainReject      = prefix + "REJECT"
	chainForward     = prefix + "FORWARD"
)

// Options of a rule set.
type Options struct {
	// MasqueradeMark is the bit of the packet mark that says: to be masqueraded.
	MasqueradeMark uint32
	// RandomFully: the kernel picks source ports of masqueraded flows at random,
	// so that two CPUs do not race for one (iptables 1.6.2).
	RandomFully bool
}

// Render compiles the Table for one family. It is pure: the result is a function
// of its arguments.
func Render(t *service.Table, ipv6 bool, opts Options) Ruleset {
	r := renderer{table: t, ipv6: ipv6, opts: opts, nat: Chains{}, filter: Chains{}}
	r.hooks()
	r.senders()
	r.postrouting()
	r.frontends()
	for id := range t.Pools {
		if id.IPv6 == ipv6 {
			r.pool(id)
		}
	}
	return Ruleset{nat: r.nat, filter: r.filter}
}

// renderPools compiles nothing but the given pools. Those that the Table has no
// more are missing in the result.
func renderPools(t *service.Table, ids []service.PoolID) Ruleset {
	r := renderer{table: t, nat: Chains{}}
	for _, id := range ids {
		if _, ok := t.Pools[id]; ok {
			r.pool(id)
		}
	}
	return Ruleset{nat: r.nat}
}

type renderer struct {
	table       *service.Table
	ipv6        bool
	opts        Options
	nat, filter Chains
}

// hooks leads packets from the built-in chains to ours.
func (r *renderer) hooks() {
	const comment = "-m comment --comment Fairlead "
	services := comment + "-j " + chainServices
	reject := "-m conntrack --ctstate NEW " + comment + "-j " + chainReject
	r.nat["PREROUTING"] = []string{services}
	r.nat["OUTPUT"] = []string{services}
	r.nat["POSTROUTING"] = []string{comment + "-j " + chainPostrouting}
	r.filter["FORWARD"] = []string{reject, comment + "-j " + chainForward}
	r.filter["OUTPUT"] = []string{reject}
}

// senders writes how the classes of senders are told apart. A packet of this
// node's own has a local source address, whichever it is.
func (r *renderer) senders() {
	mark := r.opts.MasqueradeMark
	r.nat[chainMasq] = []string{fmt.Sprintf("-j MARK --set-xmark %#x/%#x", mark, mark)}
	outside := []string{fromNode + "-j RETURN"}
	for _, p := range r.pods() {
		outside = append(outside, "-s "+p.String()+" -j RETURN")
	}
	r.nat[chainOutside] = append(outside, "-j "+chainMasq)
}

const fromNode = "-m addrtype --src-type LOCAL "

// pods are the ranges of pods in this family.
func (r *renderer) pods() []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(r.table.PodCIDRs), func(p netip.Prefix) bool {
		return p.Addr().Is6() != r.ipv6
	})
}

// postrouting masquerades what is marked, and hairpins. FORWARD lets through the
// marked, and what belongs to flows that are let through, on hosts whose policy
// is to drop.
func (r *renderer) postrouting() {
	masquerade := "-j MASQUERADE"
	if r.opts.RandomFully {
		masquerade += " --random-fully"
	}
	mark := r.opts.MasqueradeMark
	r.nat[chainPostrouting] = []string{
		fmt.Sprintf("-m conntrack --ctstate DNAT -m bpf --bytecode %q %s", sourceIsDestination(r.ipv6), masquerade),
		fmt.Sprintf("-m mark ! --mark %#x/%#x -j RETURN", mark, mark),
		fmt.Sprintf("-j MARK --set-xmark %#x/0x0", mark),
		masquerade,
	}
	r.filter[chainForward] = []string{
		fmt.Sprintf("-m mark --mark %#x/%#x -j ACCEPT", mark, mark),
		"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
	}
}

// sourceIsDestination is a classic BPF program (linux/filter.h, in the form of
// "iptables -m bpf": length, then code, jt, jf, k of each instruction) that finds
// packets whose two addresses are equal: after DNAT, those of a sender that is
// its own backend. The price of hairpins is this one rule, where comparing with
// each endpoint's address would take a rule for each endpoint.
func sourceIsDestination(ipv6 bool) string {
	source, words := 12, 1 // offset in the IP header, length
	if ipv6 {
		source, words = 8, 4
	}
	program := []string{strconv.Itoa(4*words + 2)}
	for i := range words {
		k := source + 4*i
		program = append(program,
			fmt.Sprintf("32 0 0 %d", k),               // ld [source]
			"7 0 0 0",                                 // tax
			fmt.Sprintf("32 0 0 %d", k+4*words),       // ld [destination]
			fmt.Sprintf("29 0 %d 0", 4*(words-1-i)+1)) // jeq x: else to the end
	}
	return strings.Join(append(program, "6 0 0 65535", "6 0 0 0"), ",")
}

// frontends writes both trees: to the pools in nat, to the refusals in filter.
func (r *renderer) frontends() {
	var forwarding, refusing []service.Key
	for key, f := range r.table.Frontends {
		if key.Addr.Is6() != r.ipv6 {
			continue
		}
		if slices.ContainsFunc(f.Paths[:], forwards) {
			forwarding = append(forwarding, key)
		}
		if slices.ContainsFunc(f.Paths[:], refuses) {
			refusing = append(refusing, key)
		}
	}
	slices.SortFunc(forwarding, service.Key.Compare)
	slices.SortFunc(refusing, service.Key.Compare)
	tree{r.nat, r.forward}.root(chainServices, forwarding)
	tree{r.filter, r.refuse}.root(chainReject, refusing)
}

func forwards(p service.Path) bool { return p.Verdict == service.Forward }

func refuses(p service.Path) bool {
	return p.Verdict == service.Reject || p.Verdict == service.Drop
}

// forward is what nat does with a packet for a frontend. Almost always all
// senders go to one pool, and nobody or those from outside are masqueraded.
func (r *renderer) forward(key service.Key) []string {
	f := r.table.Frontends[key]
	match := matching(key, f.Origin)
	pod, node, outside := f.Paths[service.FromPod], f.Paths[service.FromNode], f.Paths[service.FromOutside]
	toPool := match + "-j " + poolChain(pod.Pool)
	switch {
	case pod == node && pod == outside && !pod.Masquerade:
		return []string{toPool}
	case pod == node && pod == outside:
		return []string{match + "-j " + chainMasq, toPool}
	case pod == node && !pod.Masquerade && outside == service.Path{Verdict: pod.Verdict, Pool: pod.Pool, Masquerade: true}:
		return []string{match + "-j " + chainOutside, toPool}
	}
	chain := chainName("F", key.String())
	r.nat[chain] = r.bySender(f.Paths, "", func(p service.Path) []string {
		switch {
		case !forwards(p):
			return []string{"-j RETURN"}
		case p.Masquerade:
			return []string{"-j " + chainMasq, "-j " + poolChain(p.Pool)}
		}
		return []string{"-j " + poolChain(p.Pool)}
	})
	return []string{match + "-j " + chain}
}

// refuse is what filter does with a packet for a frontend that nat let pass.
func (r *renderer) refuse(key service.Key) []string {
	f := r.table.Frontends[key]
	match := matching(key, f.Origin)
	if f.Paths[service.FromPod] == f.Paths[service.FromNode] && f.Paths[service.FromPod] == f.Paths[service.FromOutside] {
		return []string{match + r.refusal(f.Paths[service.FromPod], key)}
	}
	chain := chainName("F", key.String())
	r.filter[chain] = r.bySender(f.Paths, "-p "+key.Protocol.String()+" ", func(p service.Path) []string {
		if !refuses(p) {
			return []string{"-j RETURN"}
		}
		return []string{r.refusal(p, key)}
	})
	return []string{match + "-j " + chain}
}

func (r *renderer) refusal(p service.Path, key service.Key) string {
	switch {
	case p.Verdict == service.Drop:
		return "-j DROP"
	case key.Protocol == service.TCP:
		return "-j REJECT --reject-with tcp-reset"
	case r.ipv6:
		return "-j REJECT --reject-with icmp6-port-unreachable"
	}
	return "-j REJECT --reject-with icmp-port-unreachable"
}

// bySender writes the rules of each class of sender behind what tells it apart
// (and behind protocol, "" or "-p …").
func (r *renderer) bySender(paths [3]service.Path, protocol string, rules func(service.Path) []string) []string {
	var out []string
	for _, rule := range rules(paths[service.FromNode]) {
		out = append(out, protocol+fromNode+rule)
	}
	for _, p := range r.pods() {
		for _, rule := range rules(paths[service.FromPod]) {
			out = append(out, "-s "+p.String()+" "+protocol+rule)
		}
	}
	for _, rule := range rules(paths[service.FromOutside]) {
		out = append(out, protocol+rule)
	}
	return out
}

// matching is the part of a rule that picks a frontend's packets.
func matching(key service.Key, origin service.Origin) string {
	p := key.Protocol
	return fmt.Sprintf("-d %s/%d -p %s -m comment --comment %q -m %s --dport %d ",
		key.Addr, key.Addr.BitLen(), p, origin, p, key.Port)
}

// pool writes the chain in which backends take turns. Each rule takes every
// n-th of the flows that reach it, n counting down to the last, which takes what
// is left: of N flows in a row each backend gets exactly one.
func (r *renderer) pool(id service.PoolID) {
	pool := r.table.Pools[id]
	rules := make([]string, 0, len(pool.Backends))
	for i, backend := range pool.Backends {
		turn := ""
		if left := len(pool.Backends) - i; left > 1 {
			turn = fmt.Sprintf("-m statistic --mode nth --every %d --packet 0 ", left)
		}
		rules = append(rules, fmt.Sprintf("-p %s %s-j DNAT --to-destination %s", pool.Protocol, turn, backend))
	}
	r.nat[poolChain(id)] = rules
}

func poolChain(id service.PoolID) string { return chainName("P", id.String()) }

// chainName makes a name of at most 28 characters, the limit of xtables
// (XT_EXTENSION_MAXNAMELEN less the terminating zero), out of what it stands for.
func chainName(kind, of string) string {
	sum := sha256.Sum256([]byte(of))
	return prefix + kind + "-" + strings.ToUpper(base32.HexEncoding.EncodeToString(sum[:])[:16])
}
