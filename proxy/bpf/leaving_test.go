package bpf

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/service"
)

// outside is a Service with endpoints on no node, and on one.
func outside(name string, addrs ...string) service.Update {
	n := service.Name{Namespace: "default", Name: name}
	slice := &service.Slice{
		Name: n, Service: name, Ports: []service.Port{{Protocol: service.SCTP, Number: 8080}},
		Endpoints: []service.Endpoint{
			{Addr: netip.MustParseAddr("203.0.113.200"), Ready: true, Serving: true, Node: "n9"},
			{Addr: netip.MustParseAddr("10.244.1.2"), Ready: true, Serving: true},
		},
	}
	for _, a := range addrs {
		slice.Endpoints = append(slice.Endpoints, service.Endpoint{Addr: netip.MustParseAddr(a), Ready: true, Serving: true})
	}
	return service.Update{
		Services: map[service.Name]*service.Service{n: {
			Name: n, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, name[0]})},
			Ports: []service.ServicePort{{Port: service.Port{Protocol: service.SCTP, Number: 80}}},
		}},
		Slices: map[service.Name]*service.Slice{n: slice},
	}
}

// TestLeaving: whom rules of netfilter masquerade, whoever made them, is known at once,
// or of iptables-legacy within a minute; and also by the next process.
func TestLeaving(t *testing.T) {
	node := netns.NewT(t)
	node.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip link add eth0 type veth peer name far
		ip link set eth0 up
		ip addr add 192.168.50.1/24 dev eth0
		ip route add default via 192.168.50.254 dev eth0
		sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1`)
	b, r := startIn(t, node, Config{}), cluster(3, 2)
	r.Apply(outside("x", "203.0.113.9", "203.0.113.10", "198.51.100.7"))
	sync(t, b, r, service.Change{})
	expect := func(what string, looks int, want ...string) {
		t.Helper()
		var got []string
		for range looks {
			if ok, err := b.Intact(); !ok || err != nil {
				t.Fatalf("%s: %t, %v", what, ok, err)
			}
		}
		for _, a := range []string{"203.0.113.9", "203.0.113.10", "198.51.100.7", "203.0.113.200", "10.244.1.2", "203.0.113.77"} {
			if b.Leaves(netip.MustParseAddr(a)) {
				got = append(got, a)
			}
		}
		if len(got) != len(want) || len(got) > 0 && got[0] != want[0] {
			t.Errorf("%s: masqueraded to %v, want %v", what, got, want)
		}
	}
	expect("no rules", 1)
	node.RunT(t, "nft", "table ip n { set cluster { type ipv4_addr; flags interval; elements = { 203.0.113.10/32, 10.0.0.0/8 }; }; chain out { type nat hook postrouting priority srcnat; ip saddr 10.244.1.0/24 ip daddr != @cluster masquerade; }; }")
	expect("nftables, before the first pod", looksUntilAsked, "203.0.113.9", "198.51.100.7")
	node.RunT(t, "sh", "-ec", "ip link add cni0 type bridge; ip link set cni0 up; ip addr add 10.244.1.1/24 dev cni0")
	expect("with pods", looksUntilRead, "203.0.113.9", "198.51.100.7")
	node.RunT(t, "nft", "add element ip n cluster { 203.0.113.9 }")
	expect("an element more", looksUntilAsked, "198.51.100.7")

	if err := removeOne[ebpf.Addr](b.path.Leaving); err != nil {
		t.Fatal(err)
	}
	expect("a row that others removed", looksUntilRead, "198.51.100.7")

	config := b.config
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = startIn(t, node, config)
	sync(t, b, r, service.Change{})
	if b.written != 0 {
		t.Errorf("a new process wrote %d rows", b.written)
	}
	expect("a new process", 1, "198.51.100.7")
	node.RunT(t, "nft", "flush ruleset")
	expect("no rules any more", looksUntilAsked)
	node.RunT(t, "iptables-legacy", "-t", "nat", "-A", "POSTROUTING", "-s", "10.244.0.0/16", "-o", "eth0", "-j", "MASQUERADE")
	expect("iptables-legacy", looksUntilRead, "203.0.113.9", "203.0.113.10", "198.51.100.7")
	sync(t, b, r, r.Apply(outside("x", "203.0.113.10")))
	expect("fewer", 1, "203.0.113.10")
	sync(t, b, r, r.Apply(service.Update{Services: map[service.Name]*service.Service{{Namespace: "default", Name: "x"}: nil}}))
	expect("no Service", 1)
}

// TestLeavingFull: a Service whose endpoints do not fit is left out alone, until there is
// room.
func TestLeavingFull(t *testing.T) {
	b, r := start(t, Config{Sizes: map[string]uint32{"leaving": 2}}), cluster(3, 2)
	for range 3 { // what is given back can be had again
		sync(t, b, r, r.Apply(outside("x", "203.0.113.9", "203.0.113.10")))
		sync(t, b, r, r.Apply(outside("y", "203.0.113.9")))
		err := b.Sync(t.Context(), r.Table(), r.Apply(outside("z", "203.0.113.10", "203.0.113.11")))
		var refused *service.RefusedError
		if !errors.As(err, &refused) || len(refused.Services) != 1 || refused.Services[service.Name{Namespace: "default", Name: "z"}] == nil {
			t.Fatalf("one address too many: %v", err)
		}
		if err := b.Sync(t.Context(), r.Table(), r.Apply(outside("y"))); !errors.As(err, &refused) {
			t.Fatalf("still one too many: %v", err)
		}
		sync(t, b, r, r.Apply(outside("x", "203.0.113.10")))
		if len(b.have.externals) != 2 || b.have.free["leaving"] != 0 {
			t.Errorf("%v, %v", b.have.externals, b.have.free)
		}
		for _, name := range []string{"x", "y", "z"} {
			sync(t, b, r, r.Apply(service.Update{Services: map[service.Name]*service.Service{{Namespace: "default", Name: name}: nil}}))
		}
	}
}
