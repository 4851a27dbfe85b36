package iptables

import (
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/golden"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

var opts = Options{MasqueradeMark: 0x4000, RandomFully: true, DropInvalid: true}

// tables are named inputs, one for each shape that rules can have.
func tables() map[string]*service.Table {
	empty := &service.Table{}
	typical := resolved(3, 2)
	bySender := resolved(1, 2)
	for key, f := range bySender.Frontends {
		f.Paths[service.FromNode] = service.Path{Verdict: service.Drop}
		f.Paths[service.FromOutside] = service.Path{Verdict: service.Reject}
		bySender.Frontends[key] = f
	}
	external := resolved(2, 2)
	external.NodePortCIDRs = []netip.Prefix{
		netip.MustParsePrefix("192.168.50.1/32"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::/0"),
	}
	for key, f := range maps.Clone(external.Frontends) {
		for i := range 20 { // enough for a tree
			external.Frontends[service.Key{Addr: service.AnyNodeAddr(key.Addr.Is6()), Port: 30000 + uint16(i), Protocol: key.Protocol}] = f
		}
		f.Sources = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("0.0.0.0/0")}
		if key.Addr.Is6() {
			f.Sources = []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}
		}
		external.Frontends[service.Key{Addr: key.Addr, Port: 81, Protocol: key.Protocol}] = f
		f.Paths[service.FromNode] = service.Path{Verdict: service.Reject}
		external.Frontends[service.Key{Addr: key.Addr, Port: 82, Protocol: key.Protocol}] = f
		f.Paths = service.Paths{{Verdict: service.Reject}, {Verdict: service.Reject}, {Verdict: service.Reject}}
		external.Frontends[service.Key{Addr: key.Addr, Port: 83, Protocol: key.Protocol}] = f
	}
	wide := resolved(1, 1) // ranges and ports of which all are meant
	wide.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	for key, f := range maps.Clone(wide.Frontends) {
		f.Paths[service.FromNode] = service.Path{Verdict: service.Drop}
		for i := range 20 {
			wide.Frontends[service.Key{Addr: service.AnyNodeAddr(key.Addr.Is6()), Port: 1000 + 3000*uint16(i), Protocol: key.Protocol}] = f
		}
	}
	sticky := resolved(2, 2)
	for id, pool := range sticky.Pools {
		pool.Affinity = 3 * time.Hour
		sticky.Pools[id] = pool
	}
	byInterface := resolved(1, 1)
	byInterface.PodCIDRs, byInterface.PodInterfaces = nil, []string{"cni0", "veth+"}
	for key, f := range maps.Clone(byInterface.Frontends) {
		byInterface.Frontends[service.Key{Addr: service.AnyNodeAddr(key.Addr.Is6()), Port: 30080, Protocol: key.Protocol}] = f
		f.Paths[service.FromNode] = service.Path{Verdict: service.Drop}
		byInterface.Frontends[service.Key{Addr: key.Addr, Port: 81, Protocol: key.Protocol}] = f
	}
	byInterface.LocalhostNodePorts = true
	return map[string]*service.Table{
		"compatible":   compatible(),
		"by-interface": byInterface,
		"empty":        empty,
		"external":     external,
		"sticky":       sticky,
		"wide":         wide,
		"typical":      typical,
		"by-sender":    bySender,
		"tree":         resolved(40, 1),
	}
}

// compatible has addresses of ::/96, which the kernel's tools write in two ways.
func compatible() *service.Table {
	t := &service.Table{
		Frontends:     map[service.Key]service.Frontend{},
		Pools:         map[service.PoolID]service.Pool{},
		PodCIDRs:      []netip.Prefix{netip.MustParsePrefix("::1.2.0.0/112")},
		NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("::9.9.9.0/120"), netip.MustParsePrefix("::3/128")},
	}
	id := service.PoolID{Origin: service.Origin{Service: service.Name{Namespace: "default", Name: "s"}}, IPv6: true}
	t.Pools[id] = service.Pool{Protocol: service.TCP, Backends: []netip.AddrPort{
		netip.MustParseAddrPort("[::7]:80"), netip.MustParseAddrPort("[::1:2]:80"), netip.MustParseAddrPort("[::1.2.3.4]:80"),
	}}
	for _, addr := range []string{"::", "::5", "::7.0.0.1", "0:0:0:0:0:1:2:3", "1::"} {
		key := service.Key{Addr: netip.MustParseAddr(addr), Port: 80, Protocol: service.TCP}
		path := service.Path{Verdict: service.Forward, Pool: id}
		t.Frontends[key] = service.Frontend{Paths: service.Paths{path, path, path}, Origin: id.Origin, Sources: []netip.Prefix{netip.MustParsePrefix("::8.0.0.0/104")}}
	}
	return t
}

// resolved is the Table of n dual-stack Services over TCP, UDP and SCTP in
// turn; every third has no endpoint, the others have the given number.
func resolved(n, endpoints int) *service.Table {
	r := service.NewResolver(service.Config{NodeName: "n1"})
	u := service.Update{
		Services: map[service.Name]*service.Service{},
		Slices:   map[service.Name]*service.Slice{},
		Nodes: map[string]*service.Node{"n1": {Name: "n1", PodCIDRs: []netip.Prefix{
			netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64"),
		}}},
	}
	for i := range n {
		protocol := []service.Protocol{service.TCP, service.UDP, service.SCTP}[i%3]
		name := service.Name{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
		u.Services[name] = &service.Service{
			Name: name,
			ClusterIPs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}),
				netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%x", i+1)),
			},
			Ports: []service.ServicePort{{Port: service.Port{Name: "main", Protocol: protocol, Number: 80}}},
		}
		if i%3 == 2 {
			continue
		}
		slice := &service.Slice{Name: name, Service: name.Name, Ports: []service.Port{{Name: "main", Protocol: protocol, Number: 8080}}}
		for e := range endpoints {
			for _, format := range []string{"10.244.1.%d", "fd00:10:244:1::%d"} {
				addr := netip.MustParseAddr(fmt.Sprintf(format, e+2))
				slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: addr, Ready: true})
			}
		}
		u.Slices[name] = slice
	}
	r.Apply(u)
	return r.Table()
}

func TestRenderGolden(t *testing.T) {
	for name, table := range tables() {
		for family, ipv6 := range map[string]bool{"ipv4": false, "ipv6": true} {
			t.Run(name+"/"+family, func(t *testing.T) {
				got := Render(table, ipv6, opts).String()
				path := filepath.Join("testdata", name+"."+family+".rules")
				golden.Compare(t, path, got)
				for _, variant := range []string{"legacy", "nft"} {
					testParses(t, variant, ipv6, got)
				}
			})
		}
	}
}

// testParses lets the real iptables-restore judge the rules.
func testParses(t *testing.T, variant string, ipv6 bool, rules string) {
	t.Helper()
	name := "iptables-" + variant + "-restore"
	if ipv6 {
		name = "ip6tables-" + variant + "-restore"
	}
	err := netns.NewT(t).Do(func() error {
		cmd := exec.CommandContext(t.Context(), name, "--test", "--noflush")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A script turns the rules that are there into those that are wanted, whatever
// the two are, and says nothing when they are the same.
func TestScript(t *testing.T) {
	all := tables()
	rulesets := []Ruleset{nil}
	for _, name := range []string{"empty", "typical", "by-sender", "external", "sticky", "tree", "wide"} {
		rulesets = append(rulesets, Render(all[name], false, opts))
	}
	for i, have := range rulesets {
		for j, want := range rulesets {
			got := applyScript(have, newScript(have, want).String())
			if diff := cmp.Diff(want.String(), got.String()); diff != "" {
				t.Errorf("from %d to %d (-want +got):\n%s", i, j, diff)
			}
			if s := newScript(have, want); i == j && len(s) > 0 {
				t.Errorf("%d to itself writes %s", i, s)
			}
		}
	}
}

// Divided into steps a script leads to the same, each step is one that the kernel
// takes, and what packets meet of a table changes as a whole.
func TestScriptInSteps(t *testing.T) {
	all := tables()
	rulesets := []Ruleset{nil, Render(resolved(40, 2), false, opts)}
	for _, name := range []string{"empty", "by-sender", "external", "sticky", "tree"} {
		rulesets = append(rulesets, Render(all[name], false, opts))
	}
	for i, have := range rulesets {
		for j, want := range rulesets {
			both := newScript(have, want)
			allowed := map[string]bool{}
			for _, rs := range []Ruleset{have, want, {filter: union(have[filter], want[filter])}} {
				for _, table := range []string{nat, filter} {
					allowed[met(table, rs[table])] = true
				}
			}
			for _, chains := range []int{1, 5} {
				state := have
				for step := range strings.SplitAfterSeq(both.inSteps(chains).String(), "COMMIT\n") {
					state = applyScript(state, step)
					if wrong := unacceptable(state); wrong != "" {
						t.Errorf("from %d to %d by %d: %s after\n%s", i, j, chains, wrong, step)
					}
					for table := range state {
						if seen := met(table, state[table]); !allowed[seen] {
							t.Errorf("from %d to %d by %d: after\n%spackets meet\n%s", i, j, chains, step, seen)
						}
					}
				}
				if diff := cmp.Diff(want.String(), state.String()); diff != "" {
					t.Errorf("from %d to %d by %d (-want +got):\n%s", i, j, chains, diff)
				}
			}
		}
	}
}

// met are the chains to which a built-in chain leads.
func met(table string, chains Chains) string {
	from := Chains{}
	for chain, rules := range chains {
		if !ours(chain) {
			from[chain] = rules
		}
	}
	out := Chains{}
	for len(from) > 0 {
		next := Chains{}
		for chain, rules := range from {
			out[chain] = rules
			for _, rule := range rules {
				to := rule[strings.LastIndex(rule, " ")+1:]
				if _, seen := out[to]; ours(to) && !seen {
					next[to] = chains[to]
				}
			}
		}
		from = next
	}
	return Ruleset{table: out}.String()
}

// unacceptable says why the kernel would not take a rule set: it has a rule that leads
// nowhere.
func unacceptable(rs Ruleset) string {
	for _, chains := range rs {
		for chain, rules := range chains {
			for _, rule := range rules {
				to := rule[strings.LastIndex(rule, " ")+1:]
				if _, there := chains[to]; ours(to) && !there {
					return fmt.Sprintf("%s leads to %s, which is not there,", chain, to)
				}
			}
		}
	}
	return ""
}

// applyScript does to a rule set what iptables-restore --noflush does.
func applyScript(have Ruleset, script string) Ruleset {
	rs := Ruleset{}
	for table, chains := range have {
		rs[table] = maps.Clone(chains)
	}
	var chains Chains
	for line := range strings.Lines(script) {
		line = strings.TrimSuffix(line, "\n")
		verb, rest, _ := strings.Cut(line, " ")
		chain, rule, _ := strings.Cut(rest, " ")
		switch {
		case strings.HasPrefix(line, "*"):
			if rs[line[1:]] == nil {
				rs[line[1:]] = Chains{}
			}
			chains = rs[line[1:]]
		case strings.HasPrefix(line, ":"):
			chains[verb[1:]] = nil
		case verb == "-A":
			chains[chain] = append(chains[chain], rule)
		case verb == "-I":
			at, rule, _ := strings.Cut(rule, " ")
			chains[chain] = slices.Insert(slices.Clone(chains[chain]), int(at[0]-'1'), rule)
		case verb == "-D":
			chains[chain] = slices.DeleteFunc(slices.Clone(chains[chain]), func(r string) bool { return r == rule })
			if len(chains[chain]) == 0 {
				delete(chains, chain)
			}
		case verb == "-X":
			delete(chains, chain)
		}
	}
	return rs
}

// A Service that gets or loses its endpoints is rejected or translated at every
// instant between the tables' commits: with each COMMIT applied in turn there is
// no moment with neither rule.
func TestScriptLeavesNoGap(t *testing.T) {
	with, without := resolved(1, 1), resolved(1, 0)
	for name, pair := range map[string][2]*service.Table{"gets": {without, with}, "loses": {with, without}} {
		t.Run(name, func(t *testing.T) {
			state := Render(pair[0], false, opts)
			steps := strings.SplitAfter(newScript(state, Render(pair[1], false, opts)).String(), "COMMIT\n")
			for i, step := range steps {
				state = applyScript(state, step)
				translated, rejected := len(state[nat][chainServices]) > 0, len(state[filter][chainRefuse]) > 0
				if !translated && !rejected {
					t.Errorf("after step %d neither translated nor rejected:\n%s", i, step)
				}
			}
		})
	}
}

// Whatever the number of Services, a packet for none of them sees few rules.
func TestTreeIsShallow(t *testing.T) {
	table := resolved(5000, 1)
	rs := Render(table, false, opts)
	other := netip.MustParseAddr("10.244.7.7")
	if n := seen(rs[nat], chainServices, other); n != 1 {
		t.Errorf("a packet for no Service sees %d rules, want 1", n)
	}
	worst := 0
	for key := range table.Frontends {
		if key.Addr.Is4() {
			worst = max(worst, seen(rs[nat], chainServices, key.Addr))
		}
	}
	// 5,000 consecutive addresses: 1 rule at the root, 16 at most on each of 3
	// levels, and at the leaf 1 for all of 16 addresses and 1 for each.
	if worst > 1+3*16+1+16 {
		t.Errorf("a packet for a Service sees up to %d rules", worst)
	}
}

var destination = regexp.MustCompile(`^-d (\S+) .*-j (\S+)$`)

// seen counts the rules that a packet to addr is compared with before it is at a
// pool or back from chain.
func seen(chains Chains, chain string, addr netip.Addr) int {
	n := 0
	for _, rule := range chains[chain] {
		n++
		m := destination.FindStringSubmatch(rule)
		if m != nil && netip.MustParsePrefix(m[1]).Contains(addr) && strings.HasPrefix(m[2], prefix+"D-") {
			n += seen(chains, m[2], addr)
		}
	}
	return n
}
