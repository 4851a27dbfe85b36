package way

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/cni/nft"
	"github.com/fairlead/fairlead/cni/node/masquerade"
	"github.com/fairlead/fairlead/e2e/netns"
)

// world has a pod behind a node, and a host at the node's link:
//
//	pod 10.244.1.2 ── cni0 node eth0 192.0.2.1 ── host 192.0.2.9, 198.51.100.9
type world struct {
	t               *testing.T
	pod, node, host *netns.NS
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{t, netns.NewT(t), netns.NewT(t), netns.NewT(t)}
	const quick = "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0; ip link set lo up; "
	w.node.RunT(t, "sh", "-ec", quick+`
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip link add cni0 type veth peer eth0 netns `+w.pod.Path()+`
		ip link add eth0 type veth peer eth0 netns `+w.host.Path()+`
		ip addr add 10.244.1.1/24 dev cni0; ip addr add fd00:244:1::1/64 dev cni0 nodad
		ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad
		ip link set cni0 up; ip link set eth0 up
		ip route add 198.51.100.0/24 via 192.0.2.9; ip route add 2001:db8:9::/64 via 2001:db8::9`)
	w.pod.RunT(t, "sh", "-ec", quick+`
		ip addr add 10.244.1.2/24 dev eth0; ip addr add fd00:244:1::2/64 dev eth0 nodad; ip link set eth0 up
		ip route add default via 10.244.1.1; ip route add default via fd00:244:1::1`)
	w.host.RunT(t, "sh", "-ec", quick+`
		ip addr add 192.0.2.9/24 dev eth0; ip addr add 2001:db8::9/64 dev eth0 nodad; ip link set eth0 up
		ip addr add 198.51.100.9/32 dev lo; ip addr add 2001:db8:9::9/128 dev lo
		ip route add 10.244.1.0/24 via 192.0.2.1; ip route add fd00:244:1::/64 via 2001:db8::1`)
	return w
}

// ask asks the kernel of a node.
func ask(t *testing.T, ns *netns.NS, p Packet) (w Way) {
	t.Helper()
	if err := ns.Do(func() error { w = Find(t.Context(), p); return nil }); err != nil {
		t.Fatal(err)
	}
	return w
}

// sees sends a datagram from the pod to the host and returns whom the host sees.
func (w world) sees(to netip.AddrPort) netip.Addr {
	w.t.Helper()
	var server, client *net.UDPConn
	do := func(ns *netns.NS, f func() error) {
		w.t.Helper()
		if err := ns.Do(f); err != nil {
			w.t.Fatal(err)
		}
	}
	do(w.host, func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
		return err
	})
	defer func() { _ = server.Close() }()
	do(w.pod, func() (err error) {
		client, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	})
	defer func() { _ = client.Close() }()
	seen := make(chan netip.Addr, 1)
	go func() {
		_, from, err := server.ReadFromUDPAddrPort(make([]byte, 1))
		if err == nil {
			seen <- from.Addr().Unmap()
		}
	}()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		_, _ = client.Write([]byte("x")) // refused or lost: again
		select {
		case addr := <-seen:
			return addr
		case <-time.After(100 * time.Millisecond):
		}
	}
	w.t.Fatalf("no datagram comes to %s", to)
	return netip.Addr{}
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// What is said of a packet's source is what the host sees, whoever's the rules are.
func TestNATIsWhatHostsSee(t *testing.T) {
	nftScript := func(script string) func(world) { return func(w world) { w.node.RunT(t, "nft", script) } }
	iptables := func(variant string, rules ...string) func(world) {
		return func(w world) {
			for _, command := range []string{"iptables-" + variant, "ip6tables-" + variant} {
				for _, rule := range rules {
					if (strings.Contains(rule, "::") == (command[2] == '6')) || !strings.ContainsAny(rule, ".:") {
						w.node.RunT(t, command, strings.Fields("-t nat "+rule)...)
					}
				}
			}
		}
	}
	in := func(w world, f func() error) {
		if err := w.node.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	ofOthers := []string{
		"-N OTHERS", "-A POSTROUTING -m comment --comment theirs -j OTHERS", "-A OTHERS -d 192.0.2.0/24 -j RETURN", "-A OTHERS -d 2001:db8::/64 -j RETURN",
		"-A OTHERS -s 10.244.1.0/24 ! -o cni+ -j MASQUERADE", "-A OTHERS -s fd00:244:1::/64 ! -o cni+ -j MASQUERADE",
	}
	tests := map[string]struct {
		rules      func(world)
		near, far  bool   // whether what goes to the link, and beyond it, gets another source
		why        string // of the far one
		mayBeWrong bool   // rules ask for what only they know
	}{
		"no rules": {func(world) {}, false, false, "no rule here concerns what", false},
		"fairlead node": {func(w world) {
			in(w, func() error {
				table, err := masquerade.OpenNFTables()
				if err != nil {
					return err
				}
				return table.Sync(prefixes("10.244.1.0/24", "fd00:244:1::/64"), masquerade.NewCluster(prefixes("192.0.2.9/32", "2001:db8::/64", "10.244.2.0/24")...))
			})
		}, false, true, "it leaves the cluster, where nobody knows the way back to a pod (nftables table ip", false},
		"fairlead node on iptables": {func(w world) {
			in(w, func() error {
				table, err := masquerade.OpenIPTables()
				if err != nil {
					return err
				}
				return table.Sync(prefixes("10.244.1.0/24", "fd00:244:1::/64"), masquerade.NewCluster(prefixes("192.0.2.0/24", "2001:db8::/64")...))
			})
		}, false, true, "it leaves the cluster", false},
		"ipMasq": {func(w world) {
			in(w, func() error {
				conn, err := nft.Open()
				if err != nil {
					return err
				}
				defer conn.Close()
				pod := []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:244:1::2")}
				_, err = conn.Masquerade(mode.Owner{Network: "n", ContainerID: "c", IfName: "eth0"}, pod, prefixes("192.0.2.0/24", "2001:db8::/64"))
				return err
			})
		}, false, true, "the pod's network has ipMasq (nftables table inet fairlead-cni", false},
		"intervals and names of others": {nftScript(`
			add table inet theirs
			add chain inet theirs post { type nat hook postrouting priority 90; }
			add rule inet theirs post oifname "eth*" ip daddr { 192.0.2.128-192.0.3.255, 198.51.0.0/16 } masquerade
			add rule inet theirs post oifname != { "cni0", "lo" } ip6 daddr 2001:db8:9::/48 meta l4proto { udp, tcp } masquerade`),
			false, true, "rules of others say so (nftables table inet theirs, chain post)", false},
		"a source that is said": {nftScript(`
			add table ip theirs
			add chain ip theirs post { type nat hook postrouting priority srcnat; }
			add rule ip theirs post ip saddr 10.244.1.2 udp dport 9999 snat to 192.0.2.1
			add table ip6 theirs
			add chain ip6 theirs post { type nat hook postrouting priority srcnat; }
			add rule ip6 theirs post ip6 saddr fd00:244:1::2 udp dport 9999 snat to 2001:db8::1`), true, true, "rules of others say so", false},
		"a mark that it does not have": {nftScript(`
			add table inet theirs
			add chain inet theirs post { type nat hook postrouting priority srcnat; }
			add rule inet theirs post meta mark & 0x4000 == 0x4000 masquerade
			add rule inet theirs post meta mark & 0x4000 == 0 return
			add rule inet theirs post masquerade`), false, false, "no rule here concerns", false},
		"iptables-nft":    {iptables("nft", ofOthers...), false, true, "rules of others say so (nftables table ip", false},
		"iptables-legacy": {iptables("legacy", ofOthers...), false, true, "rules of others say so (iptables-legacy, chain OTHERS)", false},
		"marks of iptables-legacy": {iptables("legacy", "-N KUBE-POSTROUTING", "-A POSTROUTING -j KUBE-POSTROUTING",
			"-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN", "-A KUBE-POSTROUTING -j MASQUERADE"), false, false, "no rule here concerns", false},
		"what only the kernel knows": {nftScript(`
			add table inet theirs
			add chain inet theirs post { type nat hook postrouting priority srcnat; }
			add rule inet theirs post ct state new masquerade`), true, true, "unless nftables table inet theirs, chain post says otherwise, whose rule asks for ct", true},
		"what only legacy knows": {iptables("legacy", "-A POSTROUTING -m conntrack --ctstate NEW -j MASQUERADE"), true, true,
			"unless iptables-legacy, chain POSTROUTING says otherwise, whose rule asks for ctstate", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.rules(w)
			for to, want := range map[string]bool{"192.0.2.9:9999": tt.near, "198.51.100.9:9999": tt.far, "[2001:db8::9]:9999": tt.near, "[2001:db8:9::9]:9999": tt.far} {
				p := Packet{Src: netip.MustParseAddr("10.244.1.2"), Dst: netip.MustParseAddrPort(to), Protocol: unix.IPPROTO_UDP}
				if p.Dst.Addr().Is6() {
					p.Src = netip.MustParseAddr("fd00:244:1::2")
				}
				way, saw := ask(t, w.node, p), w.sees(p.Dst)
				past := p
				past.Past = true
				if nat := ask(t, w.node, past).NAT; nat.Masqueraded || nat.Past != way.NAT.Masqueraded {
					t.Errorf("past netfilter: %+v", nat)
				}
				if (saw != p.Src) != want {
					t.Fatalf("%s sees %s: the rules are not what the test wants", to, saw)
				}
				said := p.Src
				if way.NAT.Masqueraded {
					said = way.NAT.To
				}
				if said != saw && !tt.mayBeWrong {
					t.Errorf("%s sees %s, but it was said: %s", to, saw, way.NAT)
				}
				if far := p.Dst.Addr().String(); (far == "198.51.100.9" || far == "2001:db8:9::9") && !strings.Contains(way.NAT.String(), tt.why) {
					t.Errorf("to %s: %s, want %s", to, way.NAT, tt.why)
				}
			}
		})
	}
}

// Which way a packet takes, and why not.
func TestRoutes(t *testing.T) {
	w := newWorld(t)
	w.node.RunT(t, "sh", "-ec", `
		ip link add fairlead-vx4 address 02:00:00:00:00:01 type vxlan id 7250 dstport 4789 nolearning local 192.0.2.1
		ip link set fairlead-vx4 up
		ip route add 10.244.3.0/24 via 203.0.113.3 dev fairlead-vx4 onlink proto 250
		ip neigh add 203.0.113.3 lladdr 02:00:00:00:00:03 dev fairlead-vx4 nud permanent
		bridge fdb append 02:00:00:00:00:03 dev fairlead-vx4 dst 203.0.113.3
		ip route add 203.0.113.0/24 via 192.0.2.9
		ip route add 10.244.4.0/24 via 203.0.113.4 dev fairlead-vx4 onlink proto 250
		ip route add 10.244.2.0/24 via 192.0.2.9 proto 250
		ip rule add from 10.244.1.0/24 to 10.66.0.0/16 lookup 77
		ip route add default via 192.0.2.9 table 77
		ip route add blackhole 10.67.0.0/16
		ip route add prohibit 10.68.0.0/16
		ip neigh add 192.0.2.66 dev eth0 nud failed`)
	for _, tt := range []struct{ from, to, way, route string }{
		{"10.244.1.2", "10.244.2.7", "by eth0, via 192.0.2.9", "10.244.2.0/24 via 192.0.2.9 dev eth0 (fairlead node)"},
		{"10.244.1.2", "10.244.3.7", "by fairlead-vx4, via 203.0.113.3, in VXLAN 7250 to 203.0.113.3 by eth0", "10.244.3.0/24 via 203.0.113.3 dev fairlead-vx4 (fairlead node)"},
		{"10.244.1.2", "10.244.4.7", "dropped: fairlead-vx4 does not know which node 203.0.113.4 is behind", "10.244.4.0/24 via 203.0.113.4 dev fairlead-vx4 (fairlead node)"},
		{"192.0.2.9", "10.244.1.2", "by cni0", "10.244.1.0/24 dev cni0 (proto kernel)"},
		{"10.244.1.2", "10.66.0.1", "by eth0, via 192.0.2.9", "default via 192.0.2.9 dev eth0 table 77 (proto boot)"},
		{"192.0.2.1", "10.66.0.1", "no route (network is unreachable)", ""},
		{"10.244.1.2", "10.67.0.1", "dropped: a route leads nowhere (blackhole), or no packet may have these addresses", ""},
		{"10.244.1.2", "10.68.0.1", "rejected: a route prohibits it", ""},
		{"127.0.0.1", "192.0.2.9", "by eth0", "192.0.2.0/24 dev eth0 (proto kernel)"},
		{"10.244.1.2", "10.244.1.1", "this node itself", "10.244.1.1/32 dev cni0 (proto kernel)"},
		{"10.99.0.1", "10.244.1.2", "not known: no route leads to 10.99.0.1 (network is unreachable), so that nothing of it comes in here", ""},
		{"10.244.1.2", "192.0.2.66", "by eth0, but 192.0.2.66 does not answer there", "192.0.2.0/24 dev eth0 (proto kernel)"},
		{"fd00:244:1::2", "2001:db8:9::9", "by eth0, via 2001:db8::9", "2001:db8:9::/64 via 2001:db8::9 dev eth0 (proto boot)"},
		{"fd00:244:1::2", "2001:db8::9", "by eth0", "2001:db8::/64 dev eth0 (proto kernel)"},
	} {
		t.Run(tt.from+" to "+tt.to, func(t *testing.T) {
			got := ask(t, w.node, Packet{Src: netip.MustParseAddr(tt.from), Dst: netip.AddrPortFrom(netip.MustParseAddr(tt.to), 0)})
			if got.String() != tt.way || got.Route != tt.route {
				t.Errorf("%q by route %q, want %q by %q", got, got.Route, tt.way, tt.route)
			}
		})
	}
	w.node.RunT(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
	for from, to := range map[string]string{"10.244.1.2": "192.0.2.9", "fd00:244:1::2": "2001:db8::9"} {
		got := ask(t, w.node, Packet{Src: netip.MustParseAddr(from), Dst: netip.AddrPortFrom(netip.MustParseAddr(to), 0)})
		if !strings.Contains(got.Error, "the kernel forwards nothing") {
			t.Errorf("without forwarding, to %s: %q", to, got)
		}
	}
}
