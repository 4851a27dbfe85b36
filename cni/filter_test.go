package cni_test

import (
	"net"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/e2e/netns"
)

// newOutside is a host on a link of the node, which knows no way to pods but
// those of spared subnets.
func newOutside(t *testing.T, node *node) *netns.NS {
	t.Helper()
	outside := netns.NewT(t)
	node.ns.RunT(t, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", outside.Path())
	for _, end := range []struct {
		ns    *netns.NS
		addrs []string
	}{{node.ns, []string{"192.0.2.1/24", "2001:db8::1/64"}}, {outside, []string{"192.0.2.2/24", "2001:db8::2/64"}}} {
		for _, addr := range end.addrs {
			end.ns.RunT(t, "ip", "addr", "add", addr, "dev", "up0", "nodad")
		}
		end.ns.RunT(t, "ip", "link", "set", "up0", "up")
	}
	return outside
}

var backends = []string{"", "nftables", "iptables"}

// filterState is what the packet filter has for pods.
func filterState(t *testing.T, node *node, backend string) string {
	t.Helper()
	if backend == "iptables" {
		return node.ns.RunT(t, "iptables", "-t", "nat", "-S") + node.ns.RunT(t, "ip6tables", "-t", "nat", "-S")
	}
	return node.ns.RunT(t, "nft", "list", "ruleset")
}

// TestMasquerade looks at whose address a server outside sees, and at what is
// left after DEL, for which the pod's namespace is gone.
func TestMasquerade(t *testing.T) {
	for _, backend := range backends {
		t.Run("backend "+backend, func(t *testing.T) {
			node := newNode(t)
			outside := newOutside(t, node)
			conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("isDefaultGateway", true).
				with("ipMasq", true).with("nonMasqueradeCIDRs", []string{"198.51.100.0/24", "2001:db8:5::/48"})
			if backend != "" {
				conf = conf.with("ipMasqBackend", backend)
			}
			a, b := newPod(t, "a"), newPod(t, "b")
			result := node.addT(t, a, conf)
			addr4, addr6 := result.IPs[0].Address.IP.String(), result.IPs[1].Address.IP.String()
			node.addT(t, b, conf)

			connect(t, a.ns, "192.0.2.1", outside, "192.0.2.2")
			connect(t, a.ns, "2001:db8::1", outside, "2001:db8::2")
			connect(t, a.ns, addr4, b.ns, "10.9.0.3")
			connect(t, a.ns, addr6, b.ns, "fd09::3")
			for _, spared := range []string{"198.51.100.7/32", "2001:db8:5::7/128"} {
				outside.RunT(t, "ip", "addr", "add", spared, "dev", "up0", "nodad")
				node.ns.RunT(t, "ip", "route", "add", spared, "dev", "up0")
			}
			outside.RunT(t, "ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.1")
			outside.RunT(t, "ip", "route", "add", "fd09::/64", "via", "2001:db8::1")
			connect(t, a.ns, addr4, outside, "198.51.100.7")
			connect(t, a.ns, addr6, outside, "2001:db8:5::7")
			if err := node.check(a, conf, result); err != nil {
				t.Errorf("CHECK: %v", err)
			}

			a.netns = ""
			node.delT(t, a, conf)
			state := filterState(t, node, backend)
			if strings.Contains(state, "net/a/eth0") || !strings.Contains(state, "net/b/eth0") {
				t.Errorf("after DEL of a, but not of b:\n%s", state)
			}
			node.delT(t, b, conf.with("ipam", nil)) // the addresses are not known any more
			if state := filterState(t, node, backend); strings.Contains(state, "/eth0") {
				t.Errorf("after DEL of b:\n%s", state)
			}
		})
	}
}

// TestMasqueradeIsCollected has GC come for a pod whose interface is gone.
func TestMasqueradeIsCollected(t *testing.T) {
	for _, backend := range backends {
		t.Run("backend "+backend, func(t *testing.T) {
			node := newNode(t)
			conf := newNetwork(t, "10.9.0.0/24").with("ipMasq", true).with("ipMasqBackend", backend).with("macspoofchk", true)
			kept, lost, other := newPod(t, "kept"), newPod(t, "lost"), newPod(t, "other")
			node.addT(t, kept, conf)
			node.addT(t, lost, conf)
			node.addT(t, other, newNetwork(t, "10.8.0.0/24").with("name", "other").with("ipMasq", true).with("ipMasqBackend", backend))
			lost.ns.RunT(t, "ip", "link", "del", "eth0")
			if err := node.gc(conf, kept); err != nil {
				t.Fatal(err)
			}
			state := filterState(t, node, backend)
			if strings.Contains(state, "net/lost/eth0") || !strings.Contains(state, "net/kept/eth0") || !strings.Contains(state, "other/other/eth0") {
				t.Errorf("after GC:\n%s", state)
			}
			if err := node.gc(conf); err != nil {
				t.Fatal(err)
			}
			if left := networkChains(filterState(t, node, backend)); len(left) != 1 {
				t.Errorf("chains after GC of all pods of one of two networks: %q", left)
			}
		})
	}
}

// TestFilterIsForgotten has the configuration change between ADD and DEL.
func TestFilterIsForgotten(t *testing.T) {
	conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("ipMasq", true).with("macspoofchk", true)
	tests := map[string]struct{ before, after network }{
		"no filter any more": {conf, conf.with("ipMasq", false).with("macspoofchk", false)},
		"other backend":      {conf, conf.with("ipMasqBackend", "iptables")},
		"nftables since":     {conf.with("ipMasqBackend", "iptables"), conf.with("ipMasqBackend", "nftables")},
		"neither since":      {conf.with("ipMasqBackend", "iptables"), conf.with("ipMasqBackend", "").with("ipMasq", false)},
		"no iptables":        {conf.with("ipMasqBackend", "iptables"), conf.with("ipMasqBackend", "iptables").with("ipMasq", false)},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newPod(t, "pod")
			node.addT(t, pod, tt.before)
			node.delT(t, pod, tt.after)
			if state := filterState(t, node, "") + filterState(t, node, "iptables"); strings.Contains(state, "net/pod/eth0") {
				t.Errorf("after DEL:\n%s", state)
			}
		})
	}
}

// TestFilterIsMadeAgain has somebody load the firewall anew, and then a runtime
// come with the next pod, of another network, or with GC.
func TestFilterIsMadeAgain(t *testing.T) {
	flushes := map[string][]string{ // in shell
		"nftables": {"nft flush ruleset"},
		"iptables": {"iptables -t nat -F", "ip6tables -t nat -F", "nft delete table bridge fairlead-cni"},
	}
	next := func(conf network) network {
		return conf.with("name", "next").with("bridge", "cni1").withIPAM("subnet", "10.8.0.0/24").withIPAM("ranges", nil)
	}
	comers := map[string]func(t *testing.T, node *node, conf network, pod pod) error{
		"ADD of another network": func(t *testing.T, node *node, conf network, _ pod) error {
			_, err := node.add(newPod(t, "next"), next(conf))
			return err
		},
		"GC": func(_ *testing.T, node *node, conf network, pod pod) error { return node.gc(conf, pod) },
	}
	for backend, commands := range flushes {
		for comer, comes := range comers {
			t.Run(backend+", "+comer, func(t *testing.T) {
				node, pod, lost := newNode(t), newPod(t, "pod"), newPod(t, "lost")
				outside := newOutside(t, node)
				outside.RunT(t, "ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.1") // pods are heard without masquerade too
				conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("isDefaultGateway", true).
					with("ipMasq", true).with("ipMasqBackend", backend).with("macspoofchk", true)
				result := node.addT(t, pod, conf)
				node.addT(t, lost, conf)
				lost.ns.RunT(t, "ip", "link", "del", "eth0")
				for _, command := range commands {
					words := strings.Fields(command)
					node.ns.RunT(t, words[0], words[1:]...)
				}
				connect(t, pod.ns, "10.9.0.2", outside, "192.0.2.2")
				if err := node.check(pod, conf, result); !strings.Contains(text(err), "bridge fairlead-cni has no rules; ") {
					t.Errorf("CHECK: %v", err)
				}
				if err := comes(t, node, conf, pod); err != nil {
					t.Fatal(err)
				}
				if err := node.check(pod, conf, result); err != nil {
					t.Errorf("CHECK: %v", err)
				}
				connect(t, pod.ns, "192.0.2.1", outside, "192.0.2.2")
				connect(t, pod.ns, "2001:db8::1", outside, "2001:db8::2")
				pod.ns.RunT(t, "ip", "addr", "add", "10.9.0.77/24", "dev", "eth0")
				if err := connectFrom(t, pod.ns, "10.9.0.77", node.ns, "10.9.0.1", time.Second); err == nil {
					t.Error("a pod sends from an address that is not its own")
				}
				if state := filterState(t, node, "") + filterState(t, node, "iptables"); strings.Contains(state, "net/lost/eth0") {
					t.Errorf("there is again what was of a pod that is gone:\n%s", state)
				}
				node.delT(t, pod, conf)
				if state := filterState(t, node, "") + filterState(t, node, "iptables"); strings.Contains(state, "net/pod/eth0") {
					t.Errorf("after DEL:\n%s", state)
				}
			})
		}
	}
}

// TestCheckLooksAtTheFilter has others change what the packet filter has of a pod.
func TestCheckLooksAtTheFilter(t *testing.T) {
	const (
		source     = "nft delete element bridge fairlead-cni sources4 { PORT . 10.9.0.2 }"
		masquerade = "nft delete element inet fairlead-cni masquerade4 { 10.9.0.2 }"
	)
	tests := map[string]struct{ backend, command, want string }{
		"nothing":                  {"", "true", ""},
		"nothing, by iptables":     {"iptables", "true", ""},
		"source":                   {"", source, "PORT . 10.9.0.2 is not in nftables sources4"},
		"masquerade":               {"", masquerade, "10.9.0.2 is not in nftables masquerade4"},
		"rules":                    {"", "nft flush chain bridge fairlead-cni macs", "nftables table bridge fairlead-cni: chain macs has 0 rules, not 1"},
		"masquerade by iptables":   {"iptables", "iptables -t nat -F FLCNI-MASQ", "iptables has no rule -A FLCNI-MASQ -s 10.9.0.2/32 … -j CHAIN in table nat"},
		"rules of iptables":        {"iptables", "ip6tables -t nat -F POSTROUTING", "ip6tables has no rule -A POSTROUTING -j FLCNI-MASQ in table nat"},
		"rules of other programs":  {"", "nft add table inet other", ""},
		"interface groups and MTU": {"", "ip link set PORT mtu 1400", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newPod(t, "pod")
			conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("ipMasq", true).with("ipMasqBackend", tt.backend).with("macspoofchk", true)
			result := node.addT(t, pod, conf)
			port := portOf(t, node)
			words := strings.Fields(strings.ReplaceAll(tt.command, "PORT", port))
			node.ns.RunT(t, words[0], words[1:]...)
			got := regexp.MustCompile(`FLCNI-MASQ-[0-9a-f]+-[0-9a-f]+`).ReplaceAllString(text(node.check(pod, conf, result)), "CHAIN")
			if want := strings.ReplaceAll(tt.want, "PORT", port); got != want {
				t.Errorf("CHECK: %q, want %q", got, want)
			}
			if err := node.check(pod, conf.with("ipMasqBackend", "iptables"), result); (text(err) == "") != (tt.want == "") {
				t.Errorf("CHECK after the backend was changed: %v", err)
			}
		})
	}
}

// TestMasqueradeEndsWithItsPod gives the address of a pod whose DEL was lost to
// one that is not masqueraded.
func TestMasqueradeEndsWithItsPod(t *testing.T) {
	node, lost, next := newNode(t), newPod(t, "lost"), newPod(t, "next")
	outside := newOutside(t, node)
	outside.RunT(t, "ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.1")
	outside.RunT(t, "ip", "route", "add", "fd09::/64", "via", "2001:db8::1")
	newConf := func() network {
		return newNetwork(t, "10.9.0.0/24", "fd09::/64").with("isDefaultGateway", true)
	}
	node.addT(t, lost, newConf().with("ipMasq", true))
	connect(t, lost.ns, "192.0.2.1", outside, "192.0.2.2")
	lost.ns.RunT(t, "ip", "link", "del", "eth0")
	node.addT(t, next, newConf())
	connect(t, next.ns, "10.9.0.2", outside, "192.0.2.2")
	connect(t, next.ns, "fd09::2", outside, "2001:db8::2")
}

// networkChains are the chains in a state of the packet filter that are not for
// all networks, each once.
func networkChains(state string) []string {
	names := regexp.MustCompile(`(?m)^(?:-N FLCNI-MASQ-\S+|\s*chain net-\S+)`).FindAllString(state, -1)
	slices.Sort(names)
	return slices.Compact(names)
}

// TestFailedAddLeavesNoFilter has an ADD fail after the packet filter knows the
// pod, and before.
func TestFailedAddLeavesNoFilter(t *testing.T) {
	for _, backend := range backends {
		t.Run("backend "+backend, func(t *testing.T) {
			node := newNode(t)
			conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("ipMasq", true).with("ipMasqBackend", backend).with("macspoofchk", true)
			node.addT(t, newPod(t, "other"), conf)
			before := filterState(t, node, backend)
			_, err := node.add(newPod(t, "failing"), conf.withIPAM("routes", []network{{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}}))
			if err == nil {
				t.Fatal("ADD succeeded")
			}
			compare(t, "packet filter", before, filterState(t, node, backend))
		})
	}
}

// TestSourceCheck has pods send from addresses that are not theirs.
func TestSourceCheck(t *testing.T) {
	tests := map[string]struct {
		claim  [][]string // what the pod does
		local  string     // where it sends from
		remote string
	}{
		"IPv4 source": {[][]string{{"ip", "addr", "add", "10.9.0.77/24", "dev", "eth0"}}, "10.9.0.77", "10.9.0.1"},
		"IPv6 source": {[][]string{{"ip", "addr", "add", "fd09::77/64", "dev", "eth0", "nodad"}}, "fd09::77", "fd09::1"},
		"hardware address": {[][]string{
			{"ip", "link", "set", "eth0", "address", "02:bb:00:00:00:01"},
			{"ip", "neigh", "flush", "dev", "eth0"},
		}, "10.9.0.2", "10.9.0.1"},
	}
	for name, tt := range tests {
		for _, checked := range []bool{true, false} {
			t.Run(name+map[bool]string{true: "", false: ", not checked"}[checked], func(t *testing.T) {
				node, pod := newNode(t), newPod(t, "pod")
				conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("isDefaultGateway", true).with("macspoofchk", checked)
				node.addT(t, pod, conf)
				connect(t, pod.ns, "10.9.0.2", node.ns, "10.9.0.1")
				connect(t, pod.ns, "fd09::2", node.ns, "fd09::1")
				for _, command := range tt.claim {
					pod.ns.RunT(t, command[0], command[1:]...)
				}
				limit := patience
				if checked {
					limit = time.Second
				}
				err := connectFrom(t, pod.ns, tt.local, node.ns, tt.remote, limit)
				if (err == nil) == checked {
					t.Errorf("from %s: %v", tt.local, err)
				}
			})
		}
	}
}

// connectFrom connects from one address to another.
func connectFrom(t *testing.T, from *netns.NS, local string, to *netns.NS, remote string, limit time.Duration) error {
	t.Helper()
	var server net.Listener
	err := to.Do(func() (err error) {
		server, err = net.Listen("tcp", net.JoinHostPort(remote, "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	return from.Do(func() error {
		dialer := net.Dialer{Timeout: limit, LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		client, err := dialer.Dial("tcp", server.Addr().String())
		if err == nil {
			_ = client.Close()
		}
		return err
	})
}

// TestSourceCheckWithoutIPAM is a pod that brings addresses of its own.
func TestSourceCheckWithoutIPAM(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t).with("macspoofchk", true)
	node.addT(t, pod, conf)
	node.ns.RunT(t, "ip", "addr", "add", "10.9.0.1/24", "dev", "cni0")
	pod.ns.RunT(t, "ip", "addr", "add", "10.9.0.5/24", "dev", "eth0")
	connect(t, pod.ns, "10.9.0.5", node.ns, "10.9.0.1")
	pod.ns.RunT(t, "ip", "link", "set", "eth0", "address", "02:bb:00:00:00:01")
	if err := connectFrom(t, pod.ns, "10.9.0.5", node.ns, "10.9.0.1", time.Second); err == nil {
		t.Error("a pod sends from another hardware address")
	}
	node.delT(t, pod, conf)
	if state := filterState(t, node, ""); strings.Contains(state, "pod") {
		t.Errorf("after DEL:\n%s", state)
	}
}

func TestFilterIsRefused(t *testing.T) {
	tests := map[string]struct {
		keys network
		want string
	}{
		"backend": {network{"ipMasqBackend": "pf"}, `ipMasqBackend: "pf" is unknown: it must be "iptables" or "nftables"`},
		"CIDR":    {network{"nonMasqueradeCIDRs": []string{"10.0.0.0/8", "cluster"}}, `nonMasqueradeCIDRs: "cluster" is not allowed: it must be a network like 10.0.0.0/8 or fd00::/8`},
		"address": {network{"nonMasqueradeCIDRs": []string{"10.0.0.1"}}, `nonMasqueradeCIDRs: "10.0.0.1" is not allowed: it must be a network like 10.0.0.0/8 or fd00::/8`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			conf := newNetwork(t)
			for key, value := range tt.keys {
				conf = conf.with(key, value)
			}
			_, err := newNode(t).add(newPod(t, "pod"), conf)
			if text(err) != tt.want || code(err) != types.ErrInvalidNetworkConfig {
				t.Errorf("code %d, error %v; want %s", code(err), err, tt.want)
			}
		})
	}
}
