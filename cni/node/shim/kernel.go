package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/link"
)

// Kernel is the kernel of this node, as far as the shim goes. It is for one
// goroutine.
type Kernel struct {
	host   *link.NS
	handle *netlink.Handle
	table  *table
}

// Open opens the kernel of the network namespace of the calling thread.
func Open() (*Kernel, error) {
	host, err := link.Host()
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		host.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	t, err := openTable()
	if err != nil {
		host.Close()
		handle.Close()
		return nil, err
	}
	return &Kernel{host, handle, t}, nil
}

// Close gives the sockets back. What the kernel has stays.
func (k *Kernel) Close() {
	k.table.close()
	k.handle.Close()
	k.host.Close()
}

// PodRoutes are the routes by which pods on a master reach this node and, by it,
// what is in ranges, of the families that the node has addresses of.
func (k *Kernel) PodRoutes(w Wanted, ranges []netip.Prefix) ([]PodRoute, error) {
	master, err := k.host.Device(w.Master)
	if err != nil {
		return nil, fmt.Errorf("master: %w", err)
	}
	var routes []PodRoute
	for _, is4 := range []bool{true, false} {
		if node := w.addr(is4); node.IsValid() {
			routes = append(routes, podRoutes(node, macOf(master.MAC), ranges)...)
		}
	}
	return routes, nil
}

// Sync makes the kernel agree with what is wanted, writing only what differs.
func (k *Kernel) Sync(w Wanted) error {
	device, err := k.device(w.Master)
	if err != nil {
		return err
	}
	return errors.Join(k.syncRoutes(device, w), k.table.sync(w))
}

// device is the shim, made if it is not there, or not as it should be.
func (k *Kernel) device(masterName string) (link.Device, error) {
	master, err := k.host.Device(masterName)
	if err != nil {
		return link.Device{}, fmt.Errorf("make shim %s: master: %w", Name, err)
	}
	device, err := k.host.Device(Name)
	switch {
	case errors.Is(err, link.ErrNoDevice):
		return k.makeDevice(master)
	case err != nil:
		return link.Device{}, err
	case device.Kind != "macvlan":
		return link.Device{}, fmt.Errorf("make shim %s: there is a %s of this name", Name, device.Kind)
	}
	mode, err := k.host.MacvlanMode(device)
	if err != nil {
		return link.Device{}, err
	}
	if device.Peer != master.Index || mode != "bridge" || device.MAC.String() != macOf(master.MAC).String() {
		if _, err := k.host.Delete(Name, "macvlan"); err != nil {
			return link.Device{}, err
		}
		return k.makeDevice(master)
	}
	if device.Up {
		return device, nil
	}
	return device, k.setUp(device)
}

func (k *Kernel) makeDevice(master link.Device) (link.Device, error) {
	err := k.host.AddMacvlan(link.Macvlan{Name: Name, MAC: macOf(master.MAC), Master: master, Mode: "bridge", NS: k.host})
	if err != nil {
		return link.Device{}, err
	}
	device, err := k.host.Device(Name)
	if err == nil {
		err = k.setUp(device)
	}
	if err != nil {
		_, _ = k.host.Delete(Name, "macvlan")
	}
	return device, err
}

// setUp sets the shim up, with what keeps it apart from its master.
func (k *Kernel) setUp(device link.Device) error {
	err := k.host.SetSysctls(
		// ARP is answered to those only that are sent to by the shim.
		link.Sysctl{Path: "net/ipv4/conf/" + Name + "/arp_filter", Value: "1"},
		link.Sysctl{Path: "net/ipv4/conf/" + Name + "/send_redirects", Value: "0"},
		link.Sysctl{Path: "net/ipv4/conf/" + Name + "/accept_redirects", Value: "0"},
		link.Sysctl{Path: "net/ipv6/conf/" + Name + "/disable_ipv6", Value: "0"},
		link.Sysctl{Path: "net/ipv6/conf/" + Name + "/accept_ra", Value: "0"},
		link.Sysctl{Path: "net/ipv6/conf/" + Name + "/accept_redirects", Value: "0"},
		// IN6_ADDR_GEN_MODE_EUI64: pods know the address in advance.
		link.Sysctl{Path: "net/ipv6/conf/" + Name + "/addr_gen_mode", Value: "0"},
		link.Sysctl{Path: "net/ipv6/conf/" + Name + "/accept_dad", Value: "0"},
	)
	if err != nil {
		return err
	}
	return k.host.SetUp(device)
}

// syncRoutes leads to the node's blocks by the shim.
func (k *Kernel) syncRoutes(device link.Device, w Wanted) error {
	have, err := k.routes(device)
	if err != nil {
		return err
	}
	want, err := k.destinations(w)
	if err != nil {
		return err
	}
	var errs []error
	for dst, src := range want {
		if old, ok := have[dst]; ok && old == src {
			continue
		}
		if err := k.handle.RouteReplace(route(device, dst, src)); err != nil {
			errs = append(errs, fmt.Errorf("set route %s dev %s src %s: %w", dst, Name, src, err))
		}
	}
	for dst, src := range have {
		if _, ok := want[dst]; ok {
			continue
		}
		if err := k.handle.RouteDel(route(device, dst, src)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete route %s dev %s: %w", dst, Name, err))
		}
	}
	return errors.Join(errs...)
}

// destinations are what the shim leads to → the address of the node's own packets.
// A block that is all of the link's subnet is led to in halves: the route of the
// subnet itself is the master's.
func (k *Kernel) destinations(w Wanted) (map[netip.Prefix]netip.Addr, error) {
	master, err := k.host.Device(w.Master)
	if err != nil {
		return nil, err
	}
	addrs, err := k.host.Addresses(master)
	if err != nil {
		return nil, err
	}
	want := map[netip.Prefix]netip.Addr{}
	for _, block := range w.Blocks {
		src := w.addr(block.Addr().Is4())
		if !src.IsValid() {
			continue // the node has no address of the family to be reached by
		}
		whole := slices.ContainsFunc(addrs, func(a link.Address) bool { return a.Masked() == block })
		if !whole {
			want[block] = src
			continue
		}
		for _, half := range halves(block) {
			want[half] = src
		}
	}
	return want, nil
}

// halves are the two of a prefix that is longer than one address.
func halves(p netip.Prefix) [2]netip.Prefix {
	high := p.Addr().AsSlice()
	high[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(high)
	return [2]netip.Prefix{netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(a, p.Bits()+1)}
}

// routes are those that were made here: what they lead to → their source.
func (k *Kernel) routes(device link.Device) (map[netip.Prefix]netip.Addr, error) {
	have := map[netip.Prefix]netip.Addr{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{LinkIndex: device.Index, Protocol: Protocol}
		found, err := k.handle.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return nil, fmt.Errorf("list routes of %s: %w", Name, err)
		}
		for _, r := range found {
			dst, _ := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			src, _ := netip.AddrFromSlice(r.Src)
			have[netip.PrefixFrom(dst.Unmap(), bits)] = src.Unmap()
		}
	}
	return have, nil
}

func route(device link.Device, dst netip.Prefix, src netip.Addr) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: device.Index,
		Dst:       &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(dst.Bits(), dst.Addr().BitLen())},
		Src:       src.AsSlice(),
		Protocol:  Protocol,
	}
	if dst.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// Cleanup removes the shim, its routes and its rules from the network namespace of
// the calling thread.
func Cleanup() error {
	host, err := link.Host()
	if err != nil {
		return err
	}
	defer host.Close()
	_, err = host.Delete(Name, "macvlan")
	t, tableErr := openTable()
	if tableErr != nil {
		return err // no nftables, no tables
	}
	defer t.close()
	return errors.Join(err, t.remove())
}

// Lost tells, until ctx ends, that somebody may have removed something of the shim;
// the next Sync looks. It is called once.
func Lost(ctx context.Context) (<-chan struct{}, error) {
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_IFADDR)
	if err != nil {
		return nil, fmt.Errorf("listen to news of links: %w", err)
	}
	context.AfterFunc(ctx, news.Close)
	lost := make(chan struct{}, 1)
	go listen(ctx, news, lost)
	return lost, nil
}

func listen(ctx context.Context, news *nl.NetlinkSocket, lost chan<- struct{}) {
	for {
		messages, _, err := news.Receive()
		overrun := errors.Is(err, unix.ENOBUFS)
		if ctx.Err() != nil || err != nil && !overrun {
			return
		}
		removed := false
		for _, m := range messages {
			switch m.Header.Type {
			case unix.RTM_DELLINK, unix.RTM_NEWLINK, unix.RTM_DELROUTE, unix.RTM_DELADDR, unix.RTM_NEWADDR:
				removed = true
			}
		}
		if !removed && !overrun {
			continue
		}
		select {
		case lost <- struct{}{}:
		default:
		}
	}
}
