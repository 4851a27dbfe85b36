package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Node is a machine of the cluster: a namespace with an uplink, a range of pod
// addresses and a proxy.
type Node struct {
	site
	Name     string
	Addrs    []netip.Addr   // on the underlay, IPv4 first
	PodCIDRs []netip.Prefix // IPv4 first

	dir   dir // the lab's
	proxy *child
}

// Manifests is the directory that the node's proxy watches.
func (n *Node) Manifests() string { return filepath.Join(n.dir.node(n.Name), "manifests") }

// addNode makes node number i, counted from 1, as far as it does not depend on
// other nodes.
func (l *Lab) addNode(i int) error {
	name, plan := nodeName(i), nodeAddresses(i)
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
	if err := ns.Do(func() error { return setSysctls(nodeSysctls) }); err != nil {
		return err
	}
	if err := plug(l.underlay, ns, name); err != nil {
		return err
	}
	if err := n.addUplink(plan.underlay); err != nil {
		return err
	}
	if err := os.MkdirAll(n.Manifests(), 0o755); err != nil {
		return err
	}
	return n.writeCNIConfig()
}

// nodeSysctls are a Kubernetes node's. Two pods of one node are on one bridge:
// when one reaches the other by a virtual IP, the answer would go straight from
// port to port and come from an address that the client never asked. With
// bridge-nf-call it passes connection tracking, which restores the virtual IP.
var nodeSysctls = append([]sysctl{
	{bridgeNetfilter, "1"},
	{"net/bridge/bridge-nf-call-ip6tables", "1"},
	{"net/ipv4/ip_forward", "1"},
	{"net/ipv6/conf/all/forwarding", "1"},
}, noDAD...)

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
func (n *Node) addUplink(addrs [2]netip.Prefix) error {
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
	for _, gateway := range gatewayAddresses() {
		if err := addRoute(link, netip.Prefix{}, gateway.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// connectNodes makes on every node a route to the pods of every other.
func connectNodes(nodes []*Node) error {
	for _, n := range nodes {
		others := slices.DeleteFunc(slices.Clone(nodes), func(o *Node) bool { return o == n })
		if err := addPodRoutes(n.ns, others); err != nil {
			return fmt.Errorf("connect %s: %w", n.Name, err)
		}
	}
	return nil
}

func addPodRoutes(ns *netns.NS, to []*Node) error {
	link, err := netlink.NewHandleAt(ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer link.Close()
	for _, n := range to {
		for i, podCIDR := range n.PodCIDRs {
			if err := addRoute(link, podCIDR, n.Addrs[i]); err != nil {
				return err
			}
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
