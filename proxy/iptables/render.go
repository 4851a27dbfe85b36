package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/fairlead/fairlead/proxy/service"
)

// The tables, and the chains that every rule set has.
//
//	nat     PREROUTING, OUTPUT ──▶ SERVICES ──tree──▶ pool (P) ── in turn ──▶ DNAT
//	                                 │        ├─────▶ OUTSIDE ──▶ MASQ   marks who is to be masqueraded
//	                                 │        ├─────▶ sources (S), where senders must be admitted
//	                                 │        └─────▶ frontend (F), where senders are told apart
//	                                 └──▶ NODEPORTS ──tree──▶ …
//	        POSTROUTING ──▶ POSTROUTING                                  masquerades
//	filter  INPUT, FORWARD, OUTPUT (new flows) ──▶ REFUSE ──tree──▶ REJECT, DROP
//	                                                 └──▶ NODEPORTS ──tree──▶ …
//	        FORWARD ──▶ FORWARD                                          lets through what we translated
//	        INPUT ──▶ LOCALHOST                                          the guard of route_localnet
const (
	nat    = "nat"
	filter = "filter"

	chainServices    = prefix + "SERVICES"
	chainOutside     = prefix + "OUTSIDE"
	chainMasq        = prefix + "MASQ"
	chainPostrouting = prefix + "POSTROUTING"
	chainRefuse      = prefix + "REFUSE"
	chainNodePorts   = prefix + "NODEPORTS"
	chainForward     = prefix + "FORWARD"
	chainLocalhost   = prefix + "LOCALHOST"
)

// Options of a rule set.
type Options struct {
	// MasqueradeMark is the bit of the packet mark that says: to be masqueraded.
	MasqueradeMark uint32
	// RandomFully: the kernel picks source ports of masqueraded flows at random,
	// so that two CPUs do not race for one (iptables 1.6.2).
	RandomFully bool
	// DropInvalid: packets that conntrack cannot place are not forwarded. They
	// would be untranslated, and the client would answer one with a reset.
	DropInvalid bool
	// Node is where pools are rotated by.
	Node string
	// LocalnetWasOn: addresses of 127.0.0.0/8 were routed before Fairlead came.
	LocalnetWasOn bool
	// Counters are names of the kernel's counters (see package nfacct) to which the
	// connections of Service ports are added. A Service port without one is not counted.
	Counters map[service.Origin]string
	// CountPackets: see Packets.
	CountPackets bool
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
func renderPools(t *service.Table, ids []service.PoolID, opts Options) Ruleset {
	r := renderer{table: t, opts: opts, nat: Chains{}}
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
	refuse := "-m conntrack --ctstate NEW " + comment + "-j " + chainRefuse
	r.nat["PREROUTING"] = []string{services}
	r.nat["OUTPUT"] = []string{services}
	r.nat["POSTROUTING"] = []string{comment + "-j " + chainPostrouting}
	r.filter["INPUT"] = []string{refuse}
	r.filter["FORWARD"] = []string{refuse, comment + "-j " + chainForward}
	r.filter["OUTPUT"] = []string{refuse}
	if r.localhost() {
		r.filter["INPUT"] = []string{comment + "-j " + chainLocalhost, refuse}
		r.filter[chainLocalhost] = []string{r.opts.guard()}
	}
}

// guard keeps those on the node's networks from its programs that listen on
// 127.0.0.1 and rely on it that nobody else can ask them, which route_localnet
// would let them (CVE-2020-8558). Answers to flows of the node's own come back by
// an interface too, and flows that others have translated are theirs to judge.
//
// That route_localnet was on before Fairlead switched it on is remembered here,
// where it lasts as long as the guard does.
func (o Options) guard() string {
	match := "-d 127.0.0.0/8 ! -i lo -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT "
	if o.LocalnetWasOn {
		match += fmt.Sprintf("-m comment --comment %q ", localnetWasOn)
	}
	return match + "-j DROP"
}

const localnetWasOn = "route_localnet was on"

// senders writes how the classes of senders are told apart.
func (r *renderer) senders() {
	mark := r.opts.MasqueradeMark
	r.nat[chainMasq] = []string{fmt.Sprintf("-j MARK --set-xmark %#x/%#x", mark, mark)}
	outside := []string{fromNode + "-g " + chainMasq}
	for _, match := range r.fromPods() {
		outside = append(outside, match+"-j RETURN")
	}
	r.nat[chainOutside] = append(outside, "-j "+chainMasq)
}

// from matches the senders of a range. All of them need no match, and
// iptables-save shows none.
func from(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return "-s " + prefixText(p) + " "
}

// addrText is an address in the words of iptables-save, which are inet_ntop's: of
// IPv6 addresses whose first 96 bits are zero it writes the rest as IPv4.
func addrText(a netip.Addr) string {
	b := a.As16()
	if a.Is6() && [12]byte(b[:12]) == [12]byte{} && (b[12] != 0 || b[13] != 0) {
		return "::" + netip.AddrFrom4([4]byte(b[12:])).String()
	}
	return a.String()
}

func prefixText(p netip.Prefix) string { return fmt.Sprintf("%s/%d", addrText(p.Addr()), p.Bits()) }

// addrPortText has brackets around IPv6 addresses.
func addrPortText(a netip.AddrPort) string {
	return net.JoinHostPort(addrText(a.Addr()), strconv.Itoa(int(a.Port())))
}

// fromPods match the packets of pods. (Packets of the node's own have come in by
// no interface.)
func (r *renderer) fromPods() []string {
	var out []string
	for _, p := range r.mine(r.table.PodCIDRs) {
		out = append(out, from(p))
	}
	for _, pattern := range r.table.PodInterfaces {
		out = append(out, "-i "+pattern+" ")
	}
	return out
}

// fromNode matches the packets of this node's own: their source address is a
// local one, whichever it is.
const fromNode = "-m addrtype --src-type LOCAL "

// mine are the ranges of this family.
func (r *renderer) mine(ranges []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ranges), func(p netip.Prefix) bool {
		return p.Addr().Is6() != r.ipv6
	})
}

// postrouting masquerades what is marked and translated, and hairpins. FORWARD
// lets the former through, and all flows that have begun, on hosts whose policy
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
		"-m conntrack --ctstate DNAT " + masquerade,
	}
	if r.localhost() && r.opts.CountPackets {
		r.nat[chainPostrouting] = slices.Insert(r.nat[chainPostrouting], 0,
			"-m conntrack --ctstate DNAT --ctorigdst 127.0.0.0/8 "+counting+localhostAccepted)
	}
	r.filter[chainForward] = []string{
		fmt.Sprintf("-m mark --mark %#x/%#x -m conntrack --ctstate DNAT -j ACCEPT", mark, mark),
		"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
	}
	if r.opts.DropInvalid {
		drop := "-m conntrack --ctstate INVALID "
		if r.opts.CountPackets {
			drop += counting + invalidDropped + " "
		}
		r.filter[chainForward] = slices.Insert(r.filter[chainForward], 0, drop+"-j DROP")
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
		if len(f.Sources) > 0 || slices.ContainsFunc(f.Paths[:], refuses) {
			refusing = append(refusing, key)
		}
	}
	r.dispatch(r.nat, chainServices, forwarding, r.forward)
	r.dispatch(r.filter, chainRefuse, refusing, r.refuse)
}

func forwards(p service.Path) bool { return p.Verdict == service.Forward }

func refuses(p service.Path) bool {
	return p.Verdict == service.Reject || p.Verdict == service.Drop
}

// dispatch leads packets from a chain to the rules of their frontends. Those for
// an address go first, as the Table wants it; then node ports, which match
// whatever address of the node is meant.
func (r *renderer) dispatch(chains Chains, root string, keys []service.Key, rules func([]service.Key, bool) []string) {
	chains[root] = nil
	slices.SortFunc(keys, service.Key.Compare)
	addressed, ports := keys, map[service.Protocol][]service.Key{}
	for len(addressed) > 0 && addressed[0].Addr.IsUnspecified() { // sorts first
		key := addressed[0]
		ports[key.Protocol] = append(ports[key.Protocol], key)
		addressed = addressed[1:]
	}
	tree{chains, byAddress, matchAddress, rules}.root(root, addressed)
	if len(ports) == 0 {
		return
	}
	chains[chainNodePorts] = nil
	for _, protocol := range slices.Sorted(maps.Keys(ports)) {
		tree{chains, byPort, matchPort(protocol), rules}.root(chainNodePorts, ports[protocol])
	}
	for _, p := range r.mine(r.table.NodePortCIDRs) {
		if !p.Addr().IsLoopback() {
			chains[root] = append(chains[root], r.nodeAddr(p)+"-j "+chainNodePorts)
		}
	}
	if r.localhost() {
		chains[root] = append(chains[root], "-d 127.0.0.0/8 -m addrtype --src-type LOCAL --dst-type LOCAL -j "+chainNodePorts)
	}
}

// localhost says whether node ports are on 127.0.0.0/8.
func (r *renderer) localhost() bool { return r.table.LocalhostNodePorts && !r.ipv6 }

// nodeAddr matches the node's addresses in a range. Loopback ones are never among
// them: see localhost.
func (r *renderer) nodeAddr(p netip.Prefix) string {
	const local = "-m addrtype --dst-type LOCAL "
	switch {
	case p.Bits() > 0:
		return "-d " + prefixText(p) + " " + local
	case r.ipv6:
		return "! -d ::1/128 " + local
	}
	return "! -d 127.0.0.0/8 " + local
}

// forward is what nat does with packets for frontends. Whether they come from
// outside is asked once for all frontends of a chain, if all want to know it. So
// a packet for none of them may get the mark too, which alone means nothing: only
// what is translated as well is masqueraded.
//
// (With iptables-nft the kernel follows every jump of the table at every commit,
// so that a jump less for each frontend nearly halves what a change costs.)
func (r *renderer) forward(keys []service.Key, alone bool) []string {
	var out []string
	once := alone && !slices.ContainsFunc(keys, func(key service.Key) bool {
		return !masksOutsiders(r.table.Frontends[key])
	})
	if once {
		out = []string{"-j " + chainOutside}
	}
	for _, key := range keys {
		f := r.table.Frontends[key]
		var rules []string
		switch {
		case once:
			rules = []string{"-j " + poolChain(f.Paths[service.FromPod].Pool)}
		case len(f.Sources) > 0:
			rules = r.admitted(r.nat, key, r.forwarding(key, f.Paths))
		default:
			rules = r.forwarding(key, f.Paths)
		}
		out = append(out, behind(r.matching(key, f.Origin), rules)...)
	}
	return out
}

// masksOutsiders: all senders go to one pool, and those that are no pods are
// masqueraded. Almost every cluster IP is like this.
func masksOutsiders(f service.Frontend) bool {
	to := f.Paths[service.FromPod]
	masked := to
	masked.Masquerade = true
	return len(f.Sources) == 0 && forwards(to) && !to.Masquerade &&
		f.Paths[service.FromNode] == masked && f.Paths[service.FromOutside] == masked
}

// forwarding are the rules for those who are admitted. Almost always all senders
// go to one pool, and nobody, everybody or those from outside are masqueraded.
func (r *renderer) forwarding(key service.Key, paths service.Paths) []string {
	pod := paths[service.FromPod]
	switch {
	case pod == paths[service.FromNode] && pod == paths[service.FromOutside]:
		return toPool(pod)
	case masksOutsiders(service.Frontend{Paths: paths}):
		return []string{"-j " + chainOutside, "-j " + poolChain(pod.Pool)}
	}
	chain := chainName("F", key.String())
	r.nat[chain] = r.bySender(paths, "", toPool)
	return []string{"-j " + chain}
}

func toPool(p service.Path) []string {
	switch {
	case !forwards(p):
		return []string{"-j RETURN"}
	case p.Masquerade:
		return []string{"-j " + chainMasq, "-j " + poolChain(p.Pool)}
	}
	return []string{"-j " + poolChain(p.Pool)}
}

// refuse is what filter does with packets for frontends that nat let pass.
func (r *renderer) refuse(keys []service.Key, _ bool) []string {
	var out []string
	for _, key := range keys {
		out = append(out, r.refuseOne(key)...)
	}
	return out
}

// refuseOne: the packet's path is a refusal, or it comes from nobody that the
// frontend admits.
func (r *renderer) refuseOne(key service.Key) []string {
	f := r.table.Frontends[key]
	var rules []string
	if slices.ContainsFunc(f.Paths[:], refuses) {
		rules = r.refusing(key, f.Paths)
	}
	if len(f.Sources) > 0 {
		if len(rules) > 0 {
			rules = r.admitted(r.filter, key, behind("-p "+key.Protocol.String()+" ", rules))
		}
		rules = append(rules, "-j DROP")
	}
	return behind(r.matching(key, f.Origin), rules)
}

func (r *renderer) refusing(key service.Key, paths service.Paths) []string {
	toRefusal := func(p service.Path) []string {
		if !refuses(p) {
			return []string{"-j RETURN"}
		}
		return []string{r.refusal(p, key)}
	}
	pod, node, outside := paths[service.FromPod], paths[service.FromNode], paths[service.FromOutside]
	if pod.Verdict == node.Verdict && pod.Verdict == outside.Verdict {
		return toRefusal(pod)
	}
	chain := chainName("F", key.String())
	r.filter[chain] = r.bySender(paths, "-p "+key.Protocol.String()+" ", toRefusal)
	return []string{"-j " + chain}
}

// admitted puts rules into a chain where they count for the frontend's sources
// only, and leads there.
func (r *renderer) admitted(chains Chains, key service.Key, rules []string) []string {
	chain := chainName("S", key.String())
	chains[chain] = nil
	for _, source := range r.table.Frontends[key].Sources {
		chains[chain] = append(chains[chain], behind(from(source), rules)...)
	}
	return []string{"-j " + chain}
}

// behind puts rules behind what they match.
func behind(match string, rules []string) []string {
	out := make([]string, len(rules))
	for i, rule := range rules {
		out[i] = match + rule
	}
	return out
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
func (r *renderer) bySender(paths service.Paths, protocol string, rules func(service.Path) []string) []string {
	var out []string
	for _, rule := range rules(paths[service.FromNode]) {
		out = append(out, protocol+fromNode+rule)
	}
	for _, match := range r.fromPods() {
		for _, rule := range rules(paths[service.FromPod]) {
			out = append(out, match+protocol+rule)
		}
	}
	for _, rule := range rules(paths[service.FromOutside]) {
		out = append(out, protocol+rule)
	}
	return out
}

// matching is the part of a rule that picks a frontend's packets.
func (r *renderer) matching(key service.Key, origin service.Origin) string {
	p, to := key.Protocol, ""
	if !key.Addr.IsUnspecified() {
		to = fmt.Sprintf("-d %s/%d ", addrText(key.Addr), key.Addr.BitLen())
	}
	return fmt.Sprintf("%s-p %s -m comment --comment %q -m %s --dport %d ", to, p, origin, p, key.Port)
}

// pool writes the chain in which backends take turns. Each rule takes every
// n-th of the flows that reach it, n counting down to the last, which takes what
// is left: of N flows in a row each backend gets exactly one.
//
// Where the turns begin differs from pool to pool and from node to node, so that
// not all that begin anew at the same time begin at the same backend: after a
// change of the pool, and with iptables-legacy, where every write is one of the
// whole table, after any change.
//
// Connections are counted before they take their turn.
//
// With affinity the kernel keeps a list of recent senders for each backend
// (xt_recent); senders on one are led there before anybody takes a turn.
func (r *renderer) pool(id service.PoolID) {
	pool := r.table.Pools[id]
	backends := rotated(pool.Backends, r.opts.Node+" "+id.String())
	var counted, again, turns []string
	if name, ok := r.opts.Counters[id.Origin]; ok {
		counted = []string{counting + name}
	}
	for i, backend := range backends {
		dnat := "-j DNAT --to-destination " + addrPortText(backend)
		turn := fmt.Sprintf("-p %s ", pool.Protocol)
		if pool.Affinity > 0 {
			list := r.recent(id, backend)
			again = append(again, turn+fmt.Sprintf("-m recent --update --seconds %d --reap %s", int(pool.Affinity.Seconds()), list)+dnat)
		}
		if left := len(backends) - i; left > 1 {
			turn += fmt.Sprintf("-m statistic --mode nth --every %d --packet 0 ", left)
		}
		if pool.Affinity > 0 {
			turn += "-m recent --set " + r.recent(id, backend)
		}
		turns = append(turns, turn+dnat)
	}
	r.nat[poolChain(id)] = slices.Concat(counted, again, turns)
}

// counting adds what gets there to a counter, and goes on with the next rule.
const counting = "-m nfacct --nfacct-name "

// rotated are the backends, beginning at one that follows from by.
func rotated(backends []netip.AddrPort, by string) []netip.AddrPort {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(by))
	first := int(hash.Sum32() % uint32(len(backends)))
	return slices.Concat(backends[first:], backends[:first])
}

// recent names the list of a backend's recent senders, which the pools of a
// Service port share.
func (r *renderer) recent(id service.PoolID, backend netip.AddrPort) string {
	mask := "255.255.255.255"
	if id.IPv6 {
		mask = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	}
	return fmt.Sprintf("--name %s --mask %s --rsource ", chainName("B", id.Origin.String()+" "+backend.String()), mask)
}

func poolChain(id service.PoolID) string { return chainName("P", id.String()) }

// chainName makes a name of at most 28 characters, the limit of xtables
// (XT_EXTENSION_MAXNAMELEN less the terminating zero), out of what it stands for.
func chainName(kind, of string) string {
	return prefix + kind + "-" + digest(of)
}

// digest is 16 characters, of which no two texts have the same ones.
func digest(of string) string {
	sum := sha256.Sum256([]byte(of))
	return base32.HexEncoding.EncodeToString(sum[:])[:16]
}
