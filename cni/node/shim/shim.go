// Package shim lets this node and its macvlan pods reach each other. The kernel
// keeps a macvlan apart from the interface that it is on; but two macvlans in mode
// bridge on one interface reach each other, so the node gets one of its own:
//
//	pod's eth0 ──macvlan──┐
//	                      ├── eth0 of the node (master) ── the network outside
//	fairlead-shim ─macvlan┘
//
// The node sends to its pods' blocks by the shim, from its own address. Pods send
// to the node, and by it to virtual IPs, by routes that they get from IPAM
// (PodRoutes). The shim is told apart from the master on the wire:
//
//   - IPv4: it answers ARP for the node's address, to those only that the node
//     sends to by the shim (arp_filter), which are its pods.
//   - IPv6: neighbour discovery knows no such filter. Pods reach it by its
//     link-local address, which nobody else asks for.
//
// What pods send by way of the node to a virtual IP is answered to the node: with the
// pod's address the answer would go straight to the pod on the wire, from a sender that
// the pod never asked. So it leaves with the node's address. Pods behind nodes see who
// asks: those behind another node on the master's link answer straight to the pod, and
// connection tracking is not told of the half that passes here. What goes to pods by
// another link, a tunnel say, leaves with the node's address too.
//
// The package is told what is wanted (Sync) and finds out what the kernel lacks.
package shim

import (
	"crypto/sha256"
	"net"
	"net/netip"
	"slices"
)

// Name is the shim's.
const Name = "fairlead-shim"

// Protocol is that of the shim's routes (rtm_protocol), next to node.Protocol.
const Protocol = 251

// Wanted is a shim as it should be.
type Wanted struct {
	Master string         // name of the interface that the pods' macvlans are on
	Addrs  []netip.Addr   // of the node; the first one of a family is what pods see
	Blocks []netip.Prefix // of macvlan pods of this node
	// Own are ranges of pods behind this node, whose answers come back here anyway:
	// they see who asked.
	Own []netip.Prefix
	// Others are ranges of pods behind other nodes.
	Others []netip.Prefix
}

// addr is the node's address of a family.
func (w Wanted) addr(is4 bool) netip.Addr {
	i := slices.IndexFunc(w.Addrs, func(a netip.Addr) bool { return a.Is4() == is4 })
	if i < 0 {
		return netip.Addr{}
	}
	return w.Addrs[i]
}

// macOf is the hardware address of the shim on a master: always the same one, so
// that the routes of pods outlive the shim. It is unicast and locally administered.
func macOf(master net.HardwareAddr) net.HardwareAddr {
	sum := sha256.Sum256(append([]byte(Name), master...))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// linkLocal is the address that the kernel makes of a hardware address (RFC 4291,
// appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// PodRoute is a route of a pod: to Dst by a neighbour, or, where Via is the zero
// Addr, to Dst on the link.
type PodRoute struct {
	Dst netip.Prefix
	Via netip.Addr
}

// podRoutes are the routes by which a pod of a family reaches the node and, by it,
// what is in ranges.
func podRoutes(node netip.Addr, mac net.HardwareAddr, ranges []netip.Prefix) []PodRoute {
	host, via := netip.PrefixFrom(node, node.BitLen()), node
	routes := []PodRoute{{Dst: host}}
	if node.Is6() {
		via = linkLocal(mac)
		routes = []PodRoute{{host, via}}
	}
	for _, r := range ranges {
		if r.Addr().Is4() == node.Is4() {
			routes = append(routes, PodRoute{r, via})
		}
	}
	return routes
}
