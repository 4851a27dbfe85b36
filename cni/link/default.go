package link

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultDevice returns the interface of the default route, of IPv4 before that
// of IPv6, of several the one that the kernel prefers. The error wraps
// ErrNoDevice if there is none.
func (ns *NS) DefaultDevice() (Device, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retry(func() ([]netlink.Route, error) {
			return ns.netlink.RouteList(nil, family) // of the main table
		})
		if err != nil {
			return Device{}, fmt.Errorf("list routes: %w", err)
		}
		if best := bestDefault(routes); best != nil {
			return ns.DeviceAt(outOf(*best))
		}
	}
	return Device{}, fmt.Errorf("find the default route: %w", ErrNoDevice)
}

// bestDefault is the default route with the lowest metric, nil if there is none.
func bestDefault(routes []netlink.Route) *netlink.Route {
	var best *netlink.Route
	for i, r := range routes {
		// Others are unreachable, blackhole and the like.
		everywhere := r.Dst == nil || prefixOf(r.Dst).Bits() == 0
		if !everywhere || r.Type != unix.RTN_UNICAST {
			continue
		}
		if best == nil || r.Priority < best.Priority {
			best = &routes[i]
		}
	}
	return best
}

// outOf is the index of the interface that a route leaves by, of one shared
// among several the first.
func outOf(r netlink.Route) int {
	if len(r.MultiPath) != 0 {
		return r.MultiPath[0].LinkIndex
	}
	return r.LinkIndex
}
