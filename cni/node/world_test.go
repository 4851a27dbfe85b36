package node

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// world is the cluster of the tests in real namespaces, each node with one pod:
//
//	a 10.0.0.1 ──┐
//	             ├── lan0 10.0.0.254 router lan1 10.9.0.254 ── c 10.9.0.3
//	b 10.0.0.2 ──┘
type world struct {
	t      testing.TB
	router *netns.NS
	nodes  map[string]*testNode
}

type testNode struct {
	Member
	ns, pod *netns.NS
	kernel  *Kernel
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, router: netns.NewT(t), nodes: map[string]*testNode{}}
	shell(t, w.router, `
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
		ip link add lan0 type bridge
		ip link add lan1 type bridge
		ip addr add 10.0.0.254/24 dev lan0
		ip addr add fd00::fe/64 dev lan0 nodad
		ip addr add 10.9.0.254/24 dev lan1
		ip addr add fd09::fe/64 dev lan1 nodad
		ip link set lan0 up
		ip link set lan1 up`)
	w.add(nodeA, "lan0", "10.0.0.254", "fd00::fe")
	w.add(nodeB, "lan0", "10.0.0.254", "fd00::fe")
	w.add(nodeC, "lan1", "10.9.0.254", "fd09::fe")
	return w
}

func (w *world) add(m Member, lan, via4, via6 string) {
	w.t.Helper()
	n := &testNode{Member: m, ns: netns.NewT(w.t), pod: netns.NewT(w.t)}
	w.nodes[m.Name] = n
	const noDAD = "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0\n"
	shell(w.t, w.router, fmt.Sprintf(`
		ip link add port-%s type veth peer eth0 netns %s
		ip link set port-%[1]s up master %[3]s`, m.Name, n.ns.Path(), lan))
	gw4, gw6 := n.podAddr(0, 1), n.podAddr(1, 1)
	shell(w.t, n.ns, fmt.Sprintf(noDAD+`
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=1
		ip link set lo up
		ip addr add %s/24 dev eth0
		ip addr add %s/64 dev eth0 nodad
		ip link set eth0 up
		ip route add default via %s
		ip route add default via %s
		ip link add cni0 type veth peer eth0 netns %s
		ip addr add %s/24 dev cni0
		ip addr add %s/64 dev cni0 nodad
		ip link set cni0 up`, m.Addrs[0], m.Addrs[1], via4, via6, n.pod.Path(), gw4, gw6))
	shell(w.t, n.pod, fmt.Sprintf(noDAD+`
		ip link set lo up
		ip addr add %s/24 dev eth0
		ip addr add %s/64 dev eth0 nodad
		ip link set eth0 up
		ip route add default via %s
		ip route add default via %s`, n.podAddr(0, 2), n.podAddr(1, 2), gw4, gw6))
}

// podAddr is an address of the node's range of a family.
func (n *testNode) podAddr(family int, host byte) netip.Addr {
	b := n.PodCIDRs[family].Addr().AsSlice()
	b[len(b)-1] = host
	a, _ := netip.AddrFromSlice(b)
	return a
}

// others are the nodes but one.
func (w *world) others(than *testNode) []Member {
	var others []Member
	for _, n := range w.nodes {
		if n != than {
			others = append(others, n.Member)
		}
	}
	return others
}

var testOptions = Options{Routing: Auto, VNI: 7, Port: 4789}

// connect has every node do its part.
func (w *world) connect(o Options) {
	w.t.Helper()
	for _, n := range w.nodes {
		n.open(w.t)
		n.sync(w.t, w.others(n), o)
	}
}

// open opens the node's kernel as a new process does.
func (n *testNode) open(t testing.TB) {
	t.Helper()
	n.kernel = openKernel(t, n.ns)
}

func openKernel(t testing.TB, ns *netns.NS) *Kernel {
	t.Helper()
	var k *Kernel
	err := ns.Do(func() (err error) {
		k, err = Open()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func (n *testNode) sync(t testing.TB, others []Member, o Options) Plan {
	t.Helper()
	plan, err := n.trySync(others, o)
	if err != nil {
		t.Fatalf("node %s: %v", n.Name, err)
	}
	return plan
}

func (n *testNode) trySync(others []Member, o Options) (Plan, error) {
	u, err := n.kernel.Underlay()
	if err != nil {
		return Plan{}, err
	}
	plan := Make(n.Member, others, u, o)
	return plan, n.kernel.Sync(plan)
}

// shell runs commands, one a line, inside a namespace.
func shell(t testing.TB, ns *netns.NS, script string) string {
	t.Helper()
	return ns.RunT(t, "sh", "-ec", strings.TrimSpace(script))
}
