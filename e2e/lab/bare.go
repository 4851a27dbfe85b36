package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// BarePod is an end of a bare path.
type BarePod struct {
	site
	Addrs [2]netip.Addr // IPv4 first
}

// AddBarePath adds, beside the lab's nodes, two ends with as many routers between them
// as between pods of two nodes on one link, and nothing on the way but links, addresses
// and routes.
//
//	end ─ veth ─ router ─ veth ─ switch ─ veth ─ router ─ veth ─ end
func (l *Lab) AddBarePath() ([2]*BarePod, error) {
	var ends [2]*BarePod
	var plans [2]addresses
	for i := range ends {
		n := MaxNodes + 1 + i
		plans[i] = nodeAddresses(n, 0)
		end, err := l.addBareEnd(fmt.Sprint("bare-", i+1), plans[i])
		if err != nil {
			return ends, fmt.Errorf("add bare path: %w", err)
		}
		ends[i] = end
	}
	for i := range ends {
		if err := l.routeBare(fmt.Sprint("bare-", i+1, "-router"), plans[1-i]); err != nil {
			return ends, fmt.Errorf("add bare path: %w", err)
		}
	}
	return ends, nil
}

// addBareEnd makes a router on the first link and an end behind it.
func (l *Lab) addBareEnd(name string, plan addresses) (*BarePod, error) {
	router, err := newNamespace(l.dir.netns(name + "-router"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = router.Close() }()
	if err := router.Do(func() error { return setSysctls(append(forwarding, noDAD...)) }); err != nil {
		return nil, err
	}
	if err := plug(l.underlay, 0, router, name); err != nil {
		return nil, err
	}
	end, err := newNamespace(l.dir.netns(name))
	if err != nil {
		return nil, err
	}
	l.bare = append(l.bare, end)
	if err := end.Do(func() error { return setSysctls(noDAD) }); err != nil {
		return nil, err
	}
	p := &BarePod{site: site{end}}
	var inside, gateways [2]netip.Prefix
	for i, podCIDR := range plan.podCIDRs {
		gateway := podCIDR.Addr().Next()
		p.Addrs[i] = gateway.Next()
		gateways[i], inside[i] = netip.PrefixFrom(gateway, podCIDR.Bits()), netip.PrefixFrom(p.Addrs[i], podCIDR.Bits())
	}
	return p, linkBare(router, end, plan.underlay, gateways, inside)
}

// linkBare links a router with its end.
func linkBare(router, end *netns.NS, uplink, gateways, inside [2]netip.Prefix) error {
	at, err := netlink.NewHandleAt(router.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer at.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "end"
	if err := at.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(end.Handle())}); err != nil {
		return fmt.Errorf("make veth: %w", err)
	}
	if err := addAddresses(at, "eth0", uplink); err != nil {
		return err
	}
	if err := addAddresses(at, attrs.Name, gateways); err != nil {
		return err
	}
	behind, err := netlink.NewHandleAt(end.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer behind.Close()
	if err := addAddresses(behind, "eth0", inside); err != nil {
		return err
	}
	for _, gateway := range gateways {
		if err := addRoute(behind, netip.Prefix{}, gateway.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// routeBare gives a router the routes to the other end.
func (l *Lab) routeBare(name string, other addresses) error {
	router, err := netns.Open(l.dir.netns(name))
	if err != nil {
		return err
	}
	defer func() { _ = router.Close() }()
	at, err := netlink.NewHandleAt(router.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer at.Close()
	for i, podCIDR := range other.podCIDRs {
		if err := addRoute(at, podCIDR, other.underlay[i].Addr()); err != nil {
			return err
		}
	}
	return nil
}
