package node

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/golden"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func cidrs(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

// The cluster of the tests: a is this node, b on its link, c behind a router.
var (
	nodeA = Member{Name: "a", Addrs: addrs("10.0.0.1", "fd00::1"), PodCIDRs: cidrs("10.244.1.0/24", "fd00:244:1::/64")}
	nodeB = Member{Name: "b", Addrs: addrs("10.0.0.2", "fd00::2"), PodCIDRs: cidrs("10.244.2.0/24", "fd00:244:2::/64")}
	nodeC = Member{Name: "c", Addrs: addrs("10.9.0.3", "fd09::3"), PodCIDRs: cidrs("10.244.3.0/24", "fd00:244:3::/64")}
)

func testUnderlay() *Underlay {
	eth0 := Device{"eth0", 1500}
	return &Underlay{
		Addrs: map[netip.Addr]Device{nodeA.Addrs[0]: eth0, nodeA.Addrs[1]: eth0},
		Routes: map[netip.Prefix]Path{
			netip.MustParsePrefix("0.0.0.0/0"):       {eth0, false},
			netip.MustParsePrefix("::/0"):            {eth0, false},
			netip.MustParsePrefix("10.0.0.0/24"):     {eth0, true},
			netip.MustParsePrefix("fd00::/64"):       {eth0, true},
			netip.MustParsePrefix("10.244.1.0/24"):   {Device{"cni0", 1500}, true},
			netip.MustParsePrefix("fd00:244:1::/64"): {Device{"cni0", 1500}, true},
		},
	}
}

func TestMake(t *testing.T) {
	tests := []struct {
		name     string
		others   []Member
		routing  Routing
		self     Member
		underlay func(*Underlay)
		services []netip.Prefix
		mtu      int
	}{
		{name: "alone"},
		{name: "one link", others: []Member{nodeB}},
		{name: "behind a router", others: []Member{nodeC, nodeB}},
		{name: "vxlan for all", others: []Member{nodeB}, routing: VXLAN},
		{name: "direct only", others: []Member{nodeB, nodeC}, routing: Direct},
		{
			name:   "longest prefix counts",
			others: []Member{nodeB},
			underlay: func(u *Underlay) {
				u.Routes[netip.MustParsePrefix("10.0.0.2/32")] = Path{Device{"eth0", 1500}, false}
				u.Routes[netip.MustParsePrefix("0.0.0.0/0")] = Path{Device{"ppp0", 1492}, true}
			},
		},
		{
			name:   "the default route has no gateway",
			others: []Member{nodeC},
			underlay: func(u *Underlay) {
				u.Routes[netip.MustParsePrefix("0.0.0.0/0")] = Path{Device{"ppp0", 1400}, true}
			},
		},
		{
			name:   "addresses on lo",
			others: []Member{nodeC},
			underlay: func(u *Underlay) {
				for a := range u.Addrs {
					u.Addrs[a] = Device{"lo", 65536}
				}
			},
		},
		{
			name: "alone with addresses on lo",
			underlay: func(u *Underlay) {
				for a := range u.Addrs {
					u.Addrs[a] = Device{"lo", 65536}
				}
			},
		},
		{
			name: "overlapping pod CIDRs",
			others: []Member{
				{Name: "z", Addrs: addrs("10.0.0.9"), PodCIDRs: cidrs("10.244.2.128/25")},
				nodeB,
				{Name: "d", Addrs: addrs("10.0.0.4"), PodCIDRs: cidrs("10.244.1.64/26")},
				{Name: "e", Addrs: addrs("10.0.0.5"), PodCIDRs: cidrs("10.0.0.0/16")},
				{Name: "f", Addrs: addrs("10.0.0.6"), PodCIDRs: cidrs("10.9.0.0/24")},
				nodeC,
			},
		},
		{
			name: "the older node has it",
			others: []Member{
				{Name: "b", Addrs: addrs("10.0.0.2"), PodCIDRs: cidrs("10.244.2.0/24"), Created: time.Unix(200, 0)},
				{Name: "z", Addrs: addrs("10.0.0.9"), PodCIDRs: cidrs("10.244.2.0/24"), Created: time.Unix(100, 0)},
			},
		},
		{
			name:   "another node has our pod CIDR",
			others: []Member{{Name: "z", Addrs: nodeB.Addrs, PodCIDRs: cidrs("10.244.1.0/24", "fd00:244:2::/64"), Created: time.Unix(100, 0)}},
			self:   Member{Name: "a", Addrs: nodeA.Addrs, PodCIDRs: nodeA.PodCIDRs, Created: time.Unix(200, 0)},
		},
		{
			name:     "pods among Services",
			others:   []Member{nodeB, {Name: "c", Addrs: addrs("10.0.0.3"), PodCIDRs: cidrs("10.96.3.0/24")}},
			self:     Member{Name: "a", Addrs: nodeA.Addrs, PodCIDRs: cidrs("10.96.1.0/24")},
			services: cidrs("10.96.0.0/16"),
		},
		{
			name: "Services on a link", others: []Member{nodeB}, services: cidrs("10.96.0.0/16", "10.0.0.0/20"),
		},
		{
			name:     "another's pods on a link of ours",
			others:   []Member{nodeC},
			underlay: func(u *Underlay) { u.Routes[netip.MustParsePrefix("10.244.3.0/24")] = Path{Device{"eth1", 1500}, true} },
		},
		{
			name: "nodes that lack something",
			others: []Member{
				{Name: "no-cidr", Addrs: addrs("10.0.0.4"), PodCIDRs: nil},
				{Name: "no-ipv6", Addrs: addrs("10.0.0.5"), PodCIDRs: cidrs("10.244.5.0/24")},
				{Name: "no-address", Addrs: addrs("fd00::6"), PodCIDRs: cidrs("10.244.6.0/24", "fd00:244:6::/64")},
				{Name: "our-address", Addrs: addrs("10.0.0.1", "fd00::7"), PodCIDRs: cidrs("10.244.7.0/24", "fd00:244:7::/64")},
			},
		},
		{name: "no pod CIDR here", self: Member{Name: "a", Addrs: nodeA.Addrs, PodCIDRs: nil}, others: []Member{nodeB}},
		{name: "no IPv6 pods here", self: Member{Name: "a", Addrs: nodeA.Addrs, PodCIDRs: nodeA.PodCIDRs[:1]}, others: []Member{nodeB}},
		{
			name: "IPv6 disabled here", others: []Member{nodeB},
			underlay: func(u *Underlay) { delete(u.Addrs, nodeA.Addrs[1]); u.NoIPv6 = true },
		},
		{
			name: "own pod CIDR on a link", others: []Member{nodeB},
			underlay: func(u *Underlay) { u.Routes[netip.MustParsePrefix("10.244.0.0/16")] = Path{Device{"eth1", 1500}, true} },
		},
		{name: "MTU as asked for", others: []Member{nodeB, nodeC}, mtu: 1330},
		{name: "MTU that is too large", others: []Member{nodeB, nodeC}, mtu: 1431},
		{name: "MTU as asked for, of addresses on lo", mtu: 1400, underlay: func(u *Underlay) {
			for a := range u.Addrs {
				u.Addrs[a] = Device{"lo", 65536}
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.self.Name == "" {
				tt.self = nodeA
			}
			u := testUnderlay()
			if tt.underlay != nil {
				tt.underlay(u)
			}
			if tt.routing == "" {
				tt.routing = Auto
			}
			plan := Make(tt.self, tt.others, u, Options{Routing: tt.routing, VNI: 1, Port: 4789, Services: tt.services, MTU: tt.mtu})
			golden.Compare(t, filepath.Join("testdata", strings.ReplaceAll(tt.name, " ", "-")+".golden"), print(plan))
		})
	}
}

// print is a plan in words much like those of ip(8) and bridge(8).
func print(p Plan) string {
	var b strings.Builder
	for _, t := range p.Tunnels {
		fmt.Fprintf(&b, "link %s address %s mtu %d type vxlan id %d local %s dstport %d\n", t.Name, t.MAC, t.MTU, t.VNI, t.Local, t.Port)
	}
	for _, n := range p.Neighbours {
		fmt.Fprintf(&b, "neigh %s lladdr %s dev %s\n", n.Addr, n.MAC, n.Tunnel)
		fmt.Fprintf(&b, "fdb %s dst %s dev %s\n", n.MAC, n.Remote, n.Tunnel)
	}
	for _, r := range p.Routes {
		fmt.Fprintf(&b, "route %s via %s dev %s src %s table %d mtu %d\n", r.Dst, r.Via, r.Dev, r.Src, r.Table, r.MTU)
	}
	for _, r := range p.Rules {
		fmt.Fprintf(&b, "rule from %s lookup %d\n", r.From, Table)
	}
	fmt.Fprintf(&b, "mtu %d\nready %t\n", p.MTU, p.Ready)
	for _, problem := range p.Problems {
		fmt.Fprintf(&b, "problem: %s: %s\n", problem.Kind, problem)
	}
	return b.String()
}
