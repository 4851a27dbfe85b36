package link

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is a way out of an interface.
type Route struct {
	Dst      netip.Prefix
	Via      netip.Addr // zero: whoever has the address is on the link
	MTU      int        // of the path; 0: that of the interface
	AdvMSS   int        // the largest segment that TCP asks for; 0: after the MTU
	Priority int        // 0: the kernel's default
	Table    int        // 0: the main table
	Scope    int        // as in rtnetlink(7); 0: universe
}

// ScopeLink is the scope of routes to what is on the link itself. Narrower
// scopes are larger numbers.
const ScopeLink = unix.RT_SCOPE_LINK

func (r Route) String() string {
	s := r.Dst.String()
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Priority != 0 {
		s += fmt.Sprintf(" metric %d", r.Priority)
	}
	if r.Table != 0 {
		s += fmt.Sprintf(" table %d", r.Table)
	}
	return s
}

// AddRoute adds a route out of an interface. IPv6 routes to one destination
// with several gateways become one route that is shared among them.
func (ns *NS) AddRoute(d Device, r Route) error {
	route := &netlink.Route{
		LinkIndex: d.Index,
		Dst:       ipNet(r.Dst),
		MTU:       r.MTU,
		AdvMSS:    r.AdvMSS,
		Priority:  r.Priority,
		Table:     r.Table,
		Scope:     netlink.Scope(r.Scope),
	}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	}
	if err := ns.netlink.RouteAddEcmp(route); err != nil {
		return fmt.Errorf("add route %s dev %s: %w", r, d.Name, err)
	}
	return nil
}

// Routes returns the routes out of an interface, of both families and in every
// table, except those that the kernel keeps for the addresses themselves.
func (ns *NS) Routes(d Device) ([]Route, error) {
	var routes []Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		read, err := retry(func() ([]netlink.Route, error) {
			every := &netlink.Route{Table: unix.RT_TABLE_UNSPEC}
			return ns.netlink.RouteListFiltered(family, every, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range read {
			if r.Table != unix.RT_TABLE_LOCAL {
				routes = append(routes, ways(r, d)...)
			}
		}
	}
	return routes, nil
}

// ways are the parts of a route that leave by d: the route itself or, of one
// shared among several gateways, the share of each.
func ways(r netlink.Route, d Device) []Route {
	route := Route{
		Dst:      prefixOf(r.Dst),
		MTU:      r.MTU,
		AdvMSS:   r.AdvMSS,
		Priority: r.Priority,
		Table:    r.Table,
		Scope:    int(r.Scope),
	}
	var found []Route
	if r.LinkIndex == d.Index {
		route.Via = addrOf(r.Gw)
		found = append(found, route)
	}
	for _, hop := range r.MultiPath {
		if hop.LinkIndex == d.Index {
			route.Via = addrOf(hop.Gw)
			found = append(found, route)
		}
	}
	return found
}

// addrOf is the zero Addr for no address.
func addrOf(ip []byte) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
