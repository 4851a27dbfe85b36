package proxytest

import (
	"fmt"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// A world is a node with everybody who may send through it, each in a network
// namespace of its own:
//
//	a, b, client   pods of the node         10.244.1.x
//	c              a pod of another node    10.244.2.x
//	outside        no part of the cluster   203.0.113.9
//	gateway        the node's default route 192.168.50.254
//	node           the node itself          192.168.50.1
//
// and the same with IPv6. Pods a, b and c serve on servicePort and otherPort.
type world struct {
	node    *netns.NS
	parties map[string]*netns.NS
	cgroup  *cgroup.Cgroup // of the sockets of those onNode; nil: there is none
	before  *service.Table // of the cluster before
}

// onNode are the parties that are the node and its pods.
var onNode = map[string]bool{"node": true, "a": true, "b": true, "client": true}

// cgroupPath is "" if there is no cgroup.
func (w *world) cgroupPath() string {
	if w.cgroup == nil {
		return ""
	}
	return w.cgroup.Path
}

const (
	servicePort = 8080
	otherPort   = 9090
)

// where is the address of each party: IPv4, IPv6.
var where = map[string][2]netip.Addr{
	"a":       {netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244:1::2")},
	"b":       {netip.MustParseAddr("10.244.1.3"), netip.MustParseAddr("fd00:10:244:1::3")},
	"c":       {netip.MustParseAddr("10.244.2.2"), netip.MustParseAddr("fd00:10:244:2::2")},
	"client":  {netip.MustParseAddr("10.244.1.9"), netip.MustParseAddr("fd00:10:244:1::9")},
	"outside": {netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8::9")},
	"gateway": {netip.MustParseAddr("192.168.50.254"), netip.MustParseAddr("fd00:50::fe")},
	"node":    {netip.MustParseAddr("192.168.50.1"), netip.MustParseAddr("fd00:50::1")},
}

var servers = []string{"a", "b", "c"}

// thisNode is the node's object.
func thisNode() *service.Node {
	return &service.Node{
		Name:      "n1",
		Zone:      "z1",
		Addresses: []netip.Addr{where["node"][0], where["node"][1]},
		PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:10:244:1::/64")},
	}
}

// newWorld builds the namespaces and starts the servers.
func newWorld(t testing.TB, subject Subject) *world {
	t.Helper()
	w := &world{node: netns.NewT(t), parties: map[string]*netns.NS{}}
	if subject.Sockets {
		w.cgroup = cgroup.NewT(t)
		w.node.Join(w.cgroup)
		pause(t, w.node)
	}
	w.parties["node"] = w.node
	// Unlimited: else a refusal now and then is silence.
	w.node.RunT(t, "sh", "-ec", `
		ip link set lo up
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0`)
	for name := range where {
		if name != "node" {
			w.attach(t, name)
		}
	}
	node, gateway := where["node"], where["gateway"]
	w.node.RunT(t, "sh", "-ec", fmt.Sprintf(`
		ip addr add %s/24 dev gateway
		ip addr add %s/64 dev gateway nodad
		ip route add default via %s src %s
		ip route add default via %s`, node[0], node[1], gateway[0], node[0], gateway[1]))
	for _, name := range servers {
		w.serve(t, name)
	}
	return w
}

// attach gives a party a namespace and a link of its own to the node, which
// routes to its addresses.
func (w *world) attach(t testing.TB, name string) {
	t.Helper()
	ns := netns.NewT(t)
	w.parties[name] = ns
	if onNode[name] {
		ns.Join(w.cgroup)
		pause(t, ns)
	}
	handle, err := netlink.NewHandleAt(w.node.Handle())
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: name, MTU: 1500})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(ns.Handle())
	if err := handle.LinkAdd(veth); err != nil {
		t.Fatalf("add veth %s: %v", name, err)
	}
	addr4, addr6 := where[name][0], where[name][1]
	ns.RunT(t, "sh", "-ec", fmt.Sprintf(`
		ip link set lo up
		ip link set eth0 up
		ip addr add %s/32 dev eth0
		ip addr add %s/128 dev eth0 nodad
		ip route add 169.254.1.1 dev eth0
		ip route add default via 169.254.1.1 src %s
		ip route add default via fe80::1 dev eth0 src %s`, addr4, addr6, addr4, addr6))
	w.node.RunT(t, "sh", "-ec", fmt.Sprintf(`
		ip link set dev %[1]s up
		ip addr add 169.254.1.1/32 dev %[1]s
		ip addr add fe80::1/64 dev %[1]s nodad
		ip route add %[2]s dev %[1]s
		ip route add %[3]s dev %[1]s`, name, addr4, addr6))
}

// pause runs a process in a namespace, as there is one in every pod and on the node. It
// ends with the test.
func pause(t testing.TB, ns *netns.NS) {
	t.Helper()
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = ns.Do(cmd.Start)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
}

// forgetFlows empties the node's connection tracking. Kernels pick the client's
// port at random: now and then a new flow has the ports of one that was led
// elsewhere a moment ago, and is led there too.
func (w *world) forgetFlows(t *testing.T) {
	t.Helper()
	handle, err := netlink.NewHandleAt(w.node.Handle(), unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if err := handle.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatalf("flush conntrack: %v", err)
	}
}

// party is whose address it is, or "" if nobody's.
func party(addr netip.Addr) string {
	if addr.IsLoopback() {
		return "node"
	}
	for name, addrs := range where {
		if addr == addrs[0] || addr == addrs[1] {
			return name
		}
	}
	return ""
}
