package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/cgroup"
)

// Node is a machine of the cluster: a namespace with an uplink, a range of pod
// addresses, and the two programs of a node.
type Node struct {
	site
	Name     string
	Addrs    []netip.Addr   // on the underlay, IPv4 first
	PodCIDRs []netip.Prefix // IPv4 first

	dir     dir            // the lab's
	cgroup  *cgroup.Cgroup // of the node's processes and its pods'; nil: none of its own
	agent   *child
	proxy   *child
	sources Sources
}

// Manifests is the directory that the node's programs watch.
func (n *Node) Manifests() string { return filepath.Join(n.dir.node(n.Name), "manifests") }

// socket is where a program of the node answers 'fairlead status'.
func (n *Node) socket(program string) string {
	return filepath.Join(n.dir.node(n.Name), program+".sock")
}

// StatusFlags have 'fairlead status' ask the programs of this node.
func (n *Node) StatusFlags() []string {
	return []string{"--socket", n.socket("proxy"), "--node-socket", n.socket("node")}
}

// BPFRoot is where the node's proxy pins its programs.
func (n *Node) BPFRoot() string { return n.dir.bpf(n.Name) }

// Cgroup is where the node's processes and pods are, "" if nowhere of their own.
func (n *Node) Cgroup() string {
	if n.cgroup == nil {
		return ""
	}
	return n.cgroup.Path
}

// usesCgroups says whether proxies see sockets by the cgroup that these are in: then
// each node has one, as each machine has.
func usesCgroups(mode string) bool { return mode != "iptables" }

// addNode makes node number i, counted from 1, as far as it does not depend on
// other nodes.
func (l *Lab) addNode(i int) error {
	name, on := nodeName(i), lan(0)
	if l.opts.Routed && i == l.opts.Nodes {
		on = 1
	}
	plan := nodeAddresses(i, on)
	ns, err := newNamespace(l.dir.netns(name))
	if err != nil {
		return err
	}
	n := &Node{
		Name:     name,
		Addrs:    []netip.Addr{plan.underlay[0].Addr(), plan.underlay[1].Addr()},
		PodCIDRs: plan.podCIDRs[:],
		site:     site{ns},
		dir:      l.dir,
	}
	l.Nodes = append(l.Nodes, n)
	if usesCgroups(l.opts.Mode) {
		if n.cgroup, err = cgroup.Make(l.dir.cgroup(name)); err != nil {
			return err
		}
		ns.Join(n.cgroup)
	}
	if err := ns.Do(func() error { return setSysctls(nodeSysctls) }); err != nil {
		return err
	}
	if err := plug(l.underlay, on, ns, name); err != nil {
		return err
	}
	if err := n.addUplink(plan.underlay, on.gateways()); err != nil {
		return err
	}
	if err := os.MkdirAll(n.Manifests(), 0o755); err != nil {
		return err
	}
	return n.writeConfTemplate()
}

// nodeSysctls are a Kubernetes node's. Two pods of one node are on one bridge:
// when one reaches the other by a virtual IP, the answer would go straight from
// port to port and come from an address that the client never asked. With
// bridge-nf-call it passes connection tracking, which restores the virtual IP.
var nodeSysctls = append([]sysctl{
	{bridgeNetfilter, "1"},
	{"net/bridge/bridge-nf-call-ip6tables", "1"},
}, append(forwarding, noDAD...)...)

const bridgeNetfilter = "net/bridge/bridge-nf-call-iptables"

// needBridgeNetfilter loads br_netfilter, as every Kubernetes installer does,
// where the kernel has it as a module and nobody has loaded it yet. Loading
// turns it on for the bridges of all namespaces; for those of the lab's caller
// it is turned off again, so that they go on as before.
func needBridgeNetfilter() error {
	if _, err := os.Stat("/proc/sys/" + bridgeNetfilter); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if out, err := exec.Command("modprobe", "br_netfilter").CombinedOutput(); err != nil {
		return fmt.Errorf("load kernel module br_netfilter: %w %s", err, out)
	}
	return setSysctls([]sysctl{
		{bridgeNetfilter, "0"},
		{"net/bridge/bridge-nf-call-ip6tables", "0"},
		{"net/bridge/bridge-nf-call-arptables", "0"},
	})
}

// addUplink brings the links up and makes the default routes. No packet for a
// virtual IP ever takes them, but a process on the node that connects to one
// must find a route before its packet gets as far as the proxy's rules.
func (n *Node) addUplink(addrs, gateways [2]netip.Prefix) error {
	link, err := netlink.NewHandleAt(n.ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer link.Close()
	if err := setUp(link, "lo"); err != nil {
		return err
	}
	if err := addAddresses(link, "eth0", addrs); err != nil {
		return err
	}
	for _, gateway := range gateways {
		if err := addRoute(link, netip.Prefix{}, gateway.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// addRoute makes a route to dst, everything if it is zero, via a neighbour.
func addRoute(link *netlink.Handle, dst netip.Prefix, via netip.Addr) error {
	route := &netlink.Route{Gw: via.AsSlice()}
	if dst.IsValid() {
		route.Dst = ipNet(dst)
	}
	if err := link.RouteAdd(route); err != nil {
		return fmt.Errorf("add route %s via %s: %w", dst, via, err)
	}
	return nil
}
