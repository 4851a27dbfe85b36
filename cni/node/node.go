// Package node connects this node's pods to those of all other nodes: routes to
// their pod CIDRs, directly where the other node is on the link and through VXLAN
// where it is not.
//
//	nodes of the cluster ─┐
//	                      ├─Make─▶ Plan ──Kernel.Sync──▶ routes, tunnels, rules
//	Underlay, as the      │        pure     only what differs        │
//	kernel says ──────────┘ ◀────────── Kernel.News ─────────────────┘
//
// Make decides and has no effects. Kernel reads and writes (rtnetlink(7)) and
// decides nothing. What both agree on is declared whole each time; Sync finds out
// what differs from what the kernel has.
//
// All that is written can be told from what others wrote: routes and rules by
// their protocol number, tunnels by their names. Nothing else is touched. It all
// stays when the process ends.
//
// The package knows neither Kubernetes nor files: members come from its caller,
// and so do the reactions to Problems.
package node

import (
	"fmt"
	"net/netip"
	"time"
)

// Member is a node of the cluster.
type Member struct {
	Name string
	// Addrs are its addresses. The first one of a family is where it is reached.
	Addrs []netip.Addr
	// PodCIDRs has at most one range of each family.
	PodCIDRs []netip.Prefix
	// Created is since when the cluster knows it: of two nodes that claim the same
	// range the older one has it.
	Created time.Time
}

func (m Member) addr(f family) netip.Addr {
	for _, a := range m.Addrs {
		if f.is(a) {
			return a
		}
	}
	return netip.Addr{}
}

func (m Member) podCIDR(f family) netip.Prefix {
	for _, p := range m.PodCIDRs {
		if f.is(p.Addr()) {
			return p
		}
	}
	return netip.Prefix{}
}

// Routing says which way pods of another node are reached.
type Routing string

// The ways.
const (
	Auto   Routing = "auto"   // Direct where the other node is on the link, VXLAN where not
	Direct Routing = "direct" // by a route via the other node's address
	VXLAN  Routing = "vxlan"  // in UDP (RFC 7348): all that the network sees are node addresses
)

// Options say how to connect.
type Options struct {
	Routing Routing
	VNI     int // VXLAN network identifier, 1 to 1<<24-1
	Port    int // UDP port of VXLAN
	// MTU is that of pods, for clusters where the links of some nodes take less than
	// those of others, which these do not see; 0: as large as the ways from here take.
	MTU int
	// Services are the ranges of the cluster's virtual IPs, as far as they are
	// known: in them no pods can be.
	Services []netip.Prefix
}

// family is an address family.
type family struct {
	name     string
	tunnel   string // name of its VXLAN device
	overhead int    // of VXLAN: outer IP header, UDP, VXLAN, inner Ethernet
	is       func(netip.Addr) bool
}

var families = [...]family{
	{"IPv4", "fairlead-vx4", 20 + 8 + 8 + 14, func(a netip.Addr) bool { return a.Is4() }},
	{"IPv6", "fairlead-vx6", 40 + 8 + 8 + 14, func(a netip.Addr) bool { return a.Is6() }},
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return families[0]
	}
	return families[1]
}

// isTunnel says whether a device's name is one of ours.
func isTunnel(name string) bool {
	return name == families[0].tunnel || name == families[1].tunnel
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
