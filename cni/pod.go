package cni

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/step"
)

// configure gives the pod's interface its addresses and routes and sets it up.
// There is nothing to undo: all of it goes with the interface.
func (a *attachment) configure() (step.Undo, error) {
	if a.conf.DisableContainerInterface {
		return nil, nil
	}
	device, err := a.Pod.Device(a.IfName)
	if err != nil {
		return nil, err
	}
	if len(a.Result.IPs) == 0 {
		return nil, a.Pod.SetUp(device)
	}
	if err := a.Pod.SetSysctls(a.sysctls()...); err != nil {
		return nil, err
	}
	if err := a.addAddresses(device); err != nil {
		return nil, err
	}
	for _, r := range a.Result.Routes {
		if err := a.Pod.AddRoute(device, a.route(r)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// uniqueLimit is how long detection of duplicates may take: a second or two for
// all addresses together.
const uniqueLimit = 10 * time.Second

// addAddresses gives the interface its addresses and sets it up. Addresses that
// are there before it is up are announced when it comes up.
func (a *attachment) addAddresses(device link.Device) error {
	add := a.Pod.AddAddress
	if a.conf.EnableDAD {
		add = a.Pod.AddUniqueAddress
	}
	for _, ip := range a.Result.IPs {
		if err := add(device, prefix(ip.Address)); err != nil {
			return err
		}
	}
	if err := a.Pod.SetUp(device); err != nil || !a.conf.EnableDAD {
		return err
	}
	return a.Pod.WaitUnique(device, uniqueLimit)
}

// sysctls are the reference plugin's, and ndisc_notify, which is to IPv6 what
// arp_notify is to IPv4 (see link.Announce). Without enabledad accept_dad spares
// the link-local address, which is not IPAM's, the second that detection of
// duplicates takes.
func (a *attachment) sysctls() []link.Sysctl {
	v4 := "net/ipv4/conf/" + a.IfName + "/"
	v6 := "net/ipv6/conf/" + a.IfName + "/"
	values := []link.Sysctl{
		{Path: v4 + "arp_notify", Value: "1"},
		{Path: v6 + "accept_dad", Value: "0"},
	}
	if a.conf.EnableDAD {
		values = append(values, link.Sysctl{Path: v6 + "accept_dad", Value: "1"}, link.Sysctl{Path: v6 + "enhanced_dad", Value: "1"})
	}
	if a.hasIPv6() {
		values = append(values,
			link.Sysctl{Path: "net/ipv6/conf/lo/disable_ipv6", Value: "0"},
			link.Sysctl{Path: v6 + "disable_ipv6", Value: "0"},
			link.Sysctl{Path: v6 + "keep_addr_on_down", Value: "1"},
			link.Sysctl{Path: v6 + "ndisc_notify", Value: "1"},
		)
	}
	return values
}

func (a *attachment) hasIPv6() bool {
	return slices.ContainsFunc(a.Result.IPs, func(ip *types100.IPConfig) bool {
		return ip.Address.IP.To4() == nil
	})
}

// route is r in the kernel's words. A route without a gateway goes by the first
// gateway of its family, if there is one, unless its scope says that what it
// leads to is on the link.
func (a *attachment) route(r *types.Route) link.Route {
	route := link.Route{Dst: prefix(r.Dst), Via: addr(r.GW), MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
	if r.Table != nil {
		route.Table = *r.Table
	}
	if r.Scope != nil {
		route.Scope = *r.Scope
	}
	if !route.Via.IsValid() && route.Scope < link.ScopeLink {
		route.Via = a.gateway(route.Dst.Addr().Is4())
	}
	return route
}

// gateway is the first gateway of a family, the zero Addr if there is none.
func (a *attachment) gateway(is4 bool) netip.Addr {
	for _, ip := range a.Result.IPs {
		if gateway := addr(ip.Gateway); gateway.IsValid() && gateway.Is4() == is4 {
			return gateway
		}
	}
	return netip.Addr{}
}

// setLoopbackUp is what the plugin "loopback" does, so that a chain needs none.
func (a *attachment) setLoopbackUp() (step.Undo, error) {
	lo, err := a.Pod.Device("lo")
	if err != nil || lo.Up {
		return nil, err
	}
	before, err := a.Pod.Addresses(lo)
	if err != nil {
		return nil, err
	}
	return func() error { return a.setLoopbackDown(lo, before) }, a.Pod.SetUp(lo)
}

// setLoopbackDown also takes away the addresses that the kernel gave it.
func (a *attachment) setLoopbackDown(lo link.Device, before []link.Address) error {
	if err := a.Pod.SetDown(lo); err != nil {
		return err
	}
	after, err := a.Pod.Addresses(lo)
	if err != nil {
		return err
	}
	for _, addr := range after {
		if slices.ContainsFunc(before, func(b link.Address) bool { return b.Prefix == addr.Prefix }) {
			continue
		}
		if err := a.Pod.DeleteAddress(lo, addr); err != nil {
			return err
		}
	}
	return nil
}

// prefix keeps the host's bits.
func prefix(n net.IPNet) netip.Prefix {
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), bits)
}

// addr is the zero Addr for no address.
func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
