package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// completeResult adds to IPAM's result what IPAM leaves to the bridge: which
// interface the addresses are for, gateways and default routes. It returns the
// addresses that the bridge must have, each once.
//
// The rules are the reference plugin's, but for one: a default route from IPAM
// counts also when it names no gateway. The reference then adds a second one,
// which is the same, and the kernel refuses it.
func (c *Config) completeResult(r *types100.Result) ([]netip.Prefix, error) {
	var gateways []netip.Prefix
	for _, ip := range r.IPs {
		ip.Interface = types100.Int(podInterface)
		if !c.IsGateway {
			continue
		}
		addr, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("IPAM gave an address that is none: %v", ip.Address)
		}
		bits, _ := ip.Address.Mask.Size()
		subnet := netip.PrefixFrom(addr.Unmap(), bits).Masked()

		gateway, ok := netip.AddrFromSlice(ip.Gateway)
		if !ok {
			gateway = subnet.Addr().Next() // by custom the first of the subnet
			ip.Gateway = gateway.AsSlice()
		}
		if own := netip.PrefixFrom(gateway.Unmap(), bits); !slices.Contains(gateways, own) {
			gateways = append(gateways, own)
		}
		if c.IsDefaultGateway {
			addDefaultRoute(r, ip.Gateway)
		}
	}
	return gateways, nil
}

// addDefaultRoute adds a default route to gateway if the result has none of its
// family.
func addDefaultRoute(r *types100.Result, gateway net.IP) {
	everywhere := net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if gateway.To4() == nil {
		everywhere = net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	for _, route := range r.Routes {
		if route.Dst.String() == everywhere.String() {
			return
		}
	}
	r.Routes = append(r.Routes, &types.Route{Dst: everywhere, GW: gateway})
}
