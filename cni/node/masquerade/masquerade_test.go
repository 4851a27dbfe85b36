package masquerade

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/golden"
	"github.com/fairlead/fairlead/e2e/netns"
)

func prefixes(texts ...string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func TestShortest(t *testing.T) {
	tests := []struct {
		name     string
		in, want []netip.Prefix
	}{
		{"nothing", prefixes(), prefixes()},
		{"order", prefixes("10.2.0.0/16", "10.0.0.0/16"), prefixes("10.0.0.0/16", "10.2.0.0/16")},
		{"twice", prefixes("10.0.0.0/16", "10.0.0.0/16"), prefixes("10.0.0.0/16")},
		{"inside", prefixes("10.0.3.0/24", "10.0.0.0/16", "10.0.0.0/24"), prefixes("10.0.0.0/16")},
		{"halves", prefixes("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/23"), prefixes("10.0.0.0/22")},
		{"neighbours that are no halves", prefixes("10.0.1.0/24", "10.0.2.0/24"), prefixes("10.0.1.0/24", "10.0.2.0/24")},
		{"everything", prefixes("0.0.0.0/1", "128.0.0.0/1"), prefixes("0.0.0.0/0")},
		{"both families", prefixes("::/1", "0.0.0.0/1", "8000::/1"), prefixes("0.0.0.0/1", "::/0")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := append([]netip.Prefix{}, shortest(tt.in)...)
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// world is a node between a pod and two servers, of which one is of the cluster:
//
//	pod 10.244.1.2 ── node 10.0.0.1 ── servers 10.0.0.2 (cluster), 198.51.100.2 (outside)
type world struct{ pod, node *netns.NS }

func newWorld(t *testing.T) world {
	t.Helper()
	w, servers := world{netns.NewT(t), netns.NewT(t)}, netns.NewT(t)
	const quiet = "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0; ip link set lo up\n"
	w.node.RunT(t, "sh", "-ec", fmt.Sprintf(quiet+`
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		ip link add cni0 type veth peer eth0 netns %s
		ip link add eth0 type veth peer eth0 netns %s
		ip addr add 10.244.1.1/24 dev cni0; ip addr add fd00:244:1::1/64 dev cni0 nodad
		ip addr add 10.0.0.1/24 dev eth0; ip addr add fd00::1/64 dev eth0 nodad
		ip link set cni0 up; ip link set eth0 up
		ip route add default via 10.0.0.2; ip route add default via fd00::2`, w.pod.Path(), servers.Path()))
	w.pod.RunT(t, "sh", "-ec", quiet+`
		ip addr add 10.244.1.2/24 dev eth0; ip addr add fd00:244:1::2/64 dev eth0 nodad
		ip link set eth0 up
		ip route add default via 10.244.1.1; ip route add default via fd00:244:1::1`)
	servers.RunT(t, "sh", "-ec", quiet+`
		ip addr add 10.0.0.2/24 dev eth0; ip addr add fd00::2/64 dev eth0 nodad
		ip addr add 198.51.100.2/32 dev lo; ip addr add 2001:db8::2/128 dev lo nodad
		ip link set eth0 up
		ip route add 10.244.1.0/24 via 10.0.0.1; ip route add fd00:244:1::/64 via fd00::1`)
	var at []echo.Endpoint
	for _, a := range []string{"10.0.0.2", "fd00::2", "198.51.100.2", "2001:db8::2"} {
		for _, network := range []string{"tcp", "udp"} {
			at = append(at, echo.Endpoint{Network: network, Addr: netip.AddrPortFrom(netip.MustParseAddr(a), 80)})
		}
	}
	echo.ServeT(t, servers, "servers", at...)
	return w
}

// saw is the address that a server sees the pod by.
func (w world) saw(t *testing.T, network, server string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var reply echo.Reply
	err := w.pod.Do(func() (err error) {
		reply, err = echo.Ask(ctx, network, netip.AddrPort{}, netip.AddrPortFrom(netip.MustParseAddr(server), 80))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Client.Addr().String()
}

// Both tables do the same, with real packets.
func TestMasquerade(t *testing.T) {
	tables := map[string]func() (Table, error){
		"nftables": func() (Table, error) { return OpenNFTables() },
		"iptables": func() (Table, error) { return OpenIPTables() },
	}
	pods := prefixes("10.244.1.0/24", "fd00:244:1::/64")
	cluster := prefixes("10.244.0.0/16", "fd00:244::/32", "10.0.0.1/32", "10.0.0.2/32", "fd00::1/128", "fd00::2/128")
	steps := []struct {
		name            string
		pods, cluster   []netip.Prefix
		outside, inside [2]string // what servers see, by family
	}{
		{"all", pods, cluster, [2]string{"10.0.0.1", "fd00::1"}, [2]string{"10.244.1.2", "fd00:244:1::2"}},
		{"a node leaves", pods, cluster[:3], [2]string{"10.0.0.1", "fd00::1"}, [2]string{"10.0.0.1", "fd00::1"}},
		{"a node joins", pods, append(prefixes("198.51.100.0/24"), cluster...), [2]string{"10.244.1.2", "fd00::1"}, [2]string{"10.244.1.2", "fd00:244:1::2"}},
		{"no IPv6", pods[:1], cluster, [2]string{"10.0.0.1", ""}, [2]string{"10.244.1.2", "fd00:244:1::2"}},
	}
	for name, open := range tables {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			table := w.open(t, open)
			var c Cluster
			for i, step := range steps {
				if i > 0 {
					c.Remove(steps[i-1].cluster...)
				}
				c.Add(step.cluster...)
				w.sync(t, table, step.pods, &c)
				for _, network := range []string{"tcp", "udp"} {
					w.expect(t, step.name, network, [2]string{"10.0.0.2", "fd00::2"}, step.inside)
					w.expect(t, step.name, network, [2]string{"198.51.100.2", "2001:db8::2"}, step.outside)
				}
			}
			w.sync(t, w.open(t, open), nil, &c)
			if got := w.node.RunT(t, "sh", "-c", "nft list tables; iptables-save; ip6tables-save"); strings.Contains(got, nftName) || strings.Contains(got, iptName) {
				t.Errorf("left over:\n%s", got)
			}
		})
	}
}

func (w world) open(t *testing.T, open func() (Table, error)) Table {
	t.Helper()
	var table Table
	if err := w.node.Do(func() (err error) { table, err = open(); return err }); err != nil {
		t.Fatal(err)
	}
	return table
}

func (w world) sync(t *testing.T, table Table, pods []netip.Prefix, to *Cluster) {
	t.Helper()
	if err := w.node.Do(func() error { return table.Sync(pods, to) }); err != nil {
		t.Fatal(err)
	}
}

// expect: an empty want is an answer that cannot come back.
func (w world) expect(t *testing.T, step, network string, servers, want [2]string) {
	t.Helper()
	for i, server := range servers {
		if want[i] == "" {
			continue
		}
		if got := w.saw(t, network, server); got != want[i] {
			t.Errorf("%s: %s %s saw %s, want %s", step, network, server, got, want[i])
		}
	}
}

// What is in the kernel reads as documented, also after changes in any order.
func TestNFTablesChanges(t *testing.T) {
	w := world{node: netns.NewT(t)}
	table := w.open(t, func() (Table, error) { return OpenNFTables() })
	pods := prefixes("10.1.0.0/24")
	var c Cluster
	var last []netip.Prefix
	for _, cluster := range [][]string{
		{"10.0.0.0/8", "11.2.0.0/16"}, {"10.0.0.0/9", "10.128.0.0/10"}, {"10.64.0.0/10", "10.128.0.0/10", "0.0.0.0/5"},
		{"10.64.0.0/10", "10.128.0.0/10", "10.128.0.0/10", "0.0.0.0/5"}, {"10.128.0.0/10", "8.0.0.0/5"}, {"10.0.0.0/8", "10.0.0.3/32"},
		{"10.0.0.0/8", "10.0.0.0/8", "10.0.0.4/32"}, {"10.0.0.0/8", "10.0.0.5/32", "10.0.0.6/32"}, {"10.0.0.0/8"},
	} {
		c.Remove(last...)
		last = prefixes(cluster...)
		c.Add(last...)
		w.sync(t, table, pods, &c)
		want := w.text(t)
		w.sync(t, w.open(t, func() (Table, error) { return OpenNFTables() }), pods, NewCluster(last...))
		if diff := cmp.Diff(want, w.text(t)); diff != "" {
			t.Errorf("%s: another process finds something else wrong (-before +after):\n%s", cluster, diff)
		}
	}
	got := w.node.RunT(t, "nft", "-n", "list", "table", "ip", nftName)
	golden.Compare(t, "testdata/table.golden", got)
}

// A cluster of thousands of nodes that come and go, at once and one by one.
func TestNFTablesMany(t *testing.T) {
	w := world{node: netns.NewT(t)}
	table := w.open(t, func() (Table, error) { return OpenNFTables() })
	pods := prefixes("192.168.1.0/24")
	var c Cluster
	many := make([]netip.Prefix, 10_000)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24)
	}
	check := func(want int) {
		t.Helper()
		w.sync(t, table, pods, &c)
		if got := strings.Count(w.node.RunT(t, "nft", "list", "set", "ip", nftName, "cluster24"), ",") + 1; got != want {
			t.Errorf("%d ranges in the kernel, want %d", got, want)
		}
	}
	c.Add(many...)
	check(10_000)
	c.Remove(many[:5000]...)
	check(5000)
	c.Add(many[0])
	check(5001)
	c.Remove(many[5000:5100]...)
	check(4901)
}

// What others do to our tables is told, and the next Sync puts it right.
func TestNFTablesDamage(t *testing.T) {
	w := newWorld(t)
	table := w.open(t, func() (Table, error) { return OpenNFTables() })
	lost := w.lost(t, table)
	pods, cluster := prefixes("10.244.1.0/24", "fd00:244:1::/64"), NewCluster(prefixes("10.0.0.2/32", "10.244.0.0/16", "fd00::2/128")...)
	w.sync(t, table, pods, cluster)
	want := w.text(t)
	tests := []struct{ name, damage string }{
		{"a firewall is loaded anew", "nft flush ruleset"},
		{"table deleted", "nft delete table ip6 fairlead-node"},
		{"rules deleted", "nft flush chain ip fairlead-node postrouting"},
		{"rule added", "nft insert rule ip6 fairlead-node postrouting accept"},
		{"chain added", "nft add chain ip fairlead-node other"},
		{"range deleted", "nft delete element ip fairlead-node cluster32 '{ 10.0.0.2 }'"},
		{"range added", "nft add element ip fairlead-node cluster16 '{ 198.51.0.0 }'"},
		{"ranges deleted", "nft flush set ip6 fairlead-node cluster128"},
		{"set added", "nft add set ip fairlead-node other '{ type ipv4_addr; }'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w.node.RunT(t, "sh", "-c", tt.damage)
			await(t, lost)
			w.sync(t, table, pods, cluster)
			if diff := cmp.Diff(want, w.text(t)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if got := w.saw(t, "tcp", "198.51.100.2"); got != "10.0.0.1" {
		t.Errorf("the server saw %s, want 10.0.0.1", got)
	}
}

// dump is our tables, with the numbers that tell one rule from the next one like it.
func (w world) dump(t *testing.T) string {
	t.Helper()
	return w.node.RunT(t, "sh", "-c", "nft -a list table ip fairlead-node; nft -a list table ip6 fairlead-node 2>&1 || true")
}

// text is dump as people write it: without numbers, elements in order.
func (w world) text(t *testing.T) string {
	t.Helper()
	text := handles.ReplaceAllString(w.dump(t), "")
	return elements.ReplaceAllStringFunc(text, func(list string) string {
		words := strings.Fields(strings.NewReplacer("elements = {", "", "}", "", ",", "").Replace(list))
		slices.Sort(words)
		return fmt.Sprint(words)
	})
}

var (
	handles  = regexp.MustCompile(` # handle \d+`)
	elements = regexp.MustCompile(`elements = \{[^}]*\}`)
)

func (w world) lost(t *testing.T, table Table) (lost <-chan struct{}) {
	t.Helper()
	if err := w.node.Do(func() (err error) { lost, err = table.Lost(t.Context()); return err }); err != nil {
		t.Fatal(err)
	}
	return lost
}

func await(t *testing.T, lost <-chan struct{}) {
	t.Helper()
	select {
	case <-lost:
	case <-time.After(time.Minute):
		t.Fatal("nothing is told")
	}
}

// What is right is not written again: neither by a process that starts where
// another one was, nor by the one that hears of what the other wrote.
func TestNFTablesRestart(t *testing.T) {
	w := world{node: netns.NewT(t)}
	pods, cluster := prefixes("10.244.1.0/24", "fd00:244:1::/64"), NewCluster(prefixes("10.0.0.0/25", "10.0.0.128/26", "10.1.0.0/16", "10.2.0.0/16", "fd00::/64")...)
	before := w.open(t, func() (Table, error) { return OpenNFTables() })
	lost := w.lost(t, before)
	w.sync(t, before, pods, cluster)
	want := w.dump(t)
	after := w.open(t, func() (Table, error) { return OpenNFTables() })
	w.sync(t, after, pods, cluster)
	if diff := cmp.Diff(want, w.dump(t)); diff != "" {
		t.Errorf("the second process wrote (-before +after):\n%s", diff)
	}
	cluster.Add(prefixes("10.9.0.0/16")...)
	w.sync(t, after, pods, cluster)
	await(t, lost)
	want = w.dump(t)
	w.sync(t, before, pods, cluster)
	if diff := cmp.Diff(want, w.dump(t)); diff != "" {
		t.Errorf("the first process wrote (-before +after):\n%s", diff)
	}
	select {
	case <-lost:
		t.Error("a process is told of what it wrote itself")
	default:
	}
}
