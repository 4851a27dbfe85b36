package way

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/sysctl"
)

// Entry is the device by which packets of a sender come in: the one that leads back to
// it. "" is this node itself. routed: there is a router in between. The error says that
// none does.
func Entry(src netip.Addr) (device string, routed bool, err error) {
	routes, err := netlink.RouteGet(src.AsSlice())
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return "", false, fmt.Errorf("no route leads to %s (%w)", src, err)
	}
	if routes[0].Type == unix.RTN_LOCAL {
		return "", false, nil
	}
	return deviceName(routes[0].LinkIndex), gatewayOf(routes[0]).IsValid(), nil
}

// deviceName is a device's name, or its number if it is gone.
func deviceName(index int) string {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return fmt.Sprintf("link %d", index)
	}
	return link.Attrs().Name
}

// route asks for the route of a packet, twice: what comes of it, and which one it is.
func route(p Packet) Way {
	in, _, err := Entry(p.Src)
	if err != nil {
		return Way{Error: fmt.Sprintf("not known: %v, so that nothing of it comes in here", err)}
	}
	w := Way{In: in}
	r, err := askRoute(p, in, false)
	if err != nil {
		w.Error = refusal(p, in, err)
		return w
	}
	if matched, err := askRoute(p, in, true); err == nil {
		w.Route = routeText(matched)
	}
	if r.Type == unix.RTN_LOCAL {
		w.Local = true
		return w
	}
	if in != "" && p.Dst.Addr().Is6() && isOff("net/ipv6/conf/all/forwarding") { // IPv6 looks only when it forwards
		w.Error = "dropped: the kernel forwards nothing (net.ipv6.conf.all.forwarding is 0)"
		return w
	}
	w.Device, w.Via = deviceName(r.LinkIndex), gatewayOf(r)
	w.meet(r.LinkIndex, w.next(p))
	return w
}

// askRoute asks for the route of a packet that comes in by a device: what comes of it, or
// as it is (match).
func askRoute(p Packet, in string, match bool) (netlink.Route, error) {
	options := netlink.RouteGetOptions{Iif: in, FIBMatch: match}
	if p.Src.IsValid() && !p.Src.IsLoopback() { // which leaves the node as another one
		options.SrcAddr = p.Src.AsSlice()
	}
	routes, err := netlink.RouteGetWithOptions(p.Dst.Addr().AsSlice(), &options)
	if err == nil && len(routes) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return netlink.Route{}, err
	}
	return routes[0], nil
}

// next is the neighbour that gets the packet.
func (w Way) next(p Packet) netip.Addr {
	if w.Via.IsValid() {
		return w.Via
	}
	return p.Dst.Addr()
}

// gatewayOf is the next router, not valid if there is none in between.
func gatewayOf(r netlink.Route) netip.Addr {
	gateway := r.Gw
	if via, ok := r.Via.(*netlink.Via); ok {
		gateway = via.Addr
	}
	addr, _ := netip.AddrFromSlice(gateway)
	return addr.Unmap()
}

// makers says by whose number a route has come (rtm_protocol), where that says more
// than its name does.
var makers = map[netlink.RouteProtocol]string{
	250: "fairlead node", // cni/node.Protocol
	251: "macvlan shim",  // cni/node/shim.Protocol
}

// routeText is a route much as ip-route(8) says it.
func routeText(r netlink.Route) string {
	words := []string{"default"}
	if r.Dst != nil {
		if ones, _ := r.Dst.Mask.Size(); ones > 0 {
			words[0] = r.Dst.String()
		}
	}
	if via := gatewayOf(r); via.IsValid() {
		words = append(words, "via", via.String())
	}
	if len(r.MultiPath) > 0 {
		words = append(words, fmt.Sprintf("by %d ways", len(r.MultiPath)))
	} else {
		words = append(words, "dev", deviceName(r.LinkIndex))
	}
	if r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_LOCAL {
		words = append(words, fmt.Sprintf("table %d", r.Table))
	}
	maker, ok := makers[r.Protocol]
	if !ok {
		maker = "proto " + r.Protocol.String()
	}
	return strings.Join(words, " ") + " (" + maker + ")"
}

func isOff(setting string) bool {
	value, err := sysctl.Read(setting)
	return err == nil && value == "0"
}

// refusal says why the kernel would not send a packet on.
func refusal(p Packet, in string, err error) string {
	switch {
	case errors.Is(err, unix.EHOSTUNREACH) && in != "" && isOff("net/ipv4/ip_forward"):
		return "dropped: the kernel forwards nothing (net.ipv4.ip_forward is 0)"
	case errors.Is(err, unix.EHOSTUNREACH) && in != "" && isOff("net/ipv4/conf/"+in+"/forwarding"):
		return fmt.Sprintf("dropped: the kernel forwards nothing that comes in by %s (net.ipv4.conf.%s.forwarding is 0)", in, in)
	case errors.Is(err, unix.EXDEV):
		return fmt.Sprintf("dropped: the answer to %s would not go by %s (rp_filter)", p.Src, in)
	case errors.Is(err, unix.EACCES):
		return "rejected: a route prohibits it"
	case errors.Is(err, unix.EINVAL):
		return "dropped: a route leads nowhere (blackhole), or no packet may have these addresses"
	}
	return fmt.Sprintf("no route (%v)", err)
}

// meet looks whom a packet meets at a device: a neighbour, and behind a tunnel a node.
func (w *Way) meet(index int, next netip.Addr) {
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return // it went just now
	}
	mac, state := neighbour(index, next)
	if state&unix.NUD_FAILED != 0 {
		w.Silent = fmt.Sprintf("%s does not answer there", next)
	}
	vxlan, ok := link.(*netlink.Vxlan)
	if !ok {
		return
	}
	remote := behind(index, mac)
	if mac == nil || !remote.IsValid() {
		w.Error = fmt.Sprintf("dropped: %s does not know which node %s is behind", w.Device, next)
		return
	}
	w.Tunnel = &Tunnel{VNI: vxlan.VxlanId, Remote: remote}
	outer, err := netlink.RouteGet(remote.AsSlice())
	if err != nil || len(outer) == 0 {
		w.Error = fmt.Sprintf("dropped: no route leads to %s, the other end of tunnel %s", remote, w.Device)
		return
	}
	w.Tunnel.Device = deviceName(outer[0].LinkIndex)
}

// neighbour is what is known of an address at a device: nil and 0 if nothing is.
func neighbour(index int, addr netip.Addr) (net.HardwareAddr, int) {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	all, _ := netlink.NeighList(index, family) // or nothing is known
	for _, n := range all {
		if n.IP.Equal(addr.AsSlice()) {
			return n.HardwareAddr, n.State
		}
	}
	return nil, 0
}

// behind is the node to which a tunnel sends what is for a MAC address.
func behind(index int, mac net.HardwareAddr) netip.Addr {
	all, _ := netlink.NeighList(index, unix.AF_BRIDGE)
	for _, n := range all {
		if addr, ok := netip.AddrFromSlice(n.IP); ok && n.HardwareAddr.String() == mac.String() {
			return addr.Unmap()
		}
	}
	return netip.Addr{}
}

// sourceAt is the address that what is masqueraded gets at a device: as the kernel
// does (inet_select_addr), the one on the next hop's network, else the first.
func sourceAt(device string, next netip.Addr) netip.Addr {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return netip.Addr{}
	}
	family := unix.AF_INET
	if next.Is6() {
		family = unix.AF_INET6
	}
	addrs, _ := netlink.AddrList(link, family)
	var first netip.Addr
	for _, a := range addrs {
		addr, _ := netip.AddrFromSlice(a.IP)
		if addr = addr.Unmap(); a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&unix.IFA_F_SECONDARY != 0 {
			continue
		}
		if a.Contains(next.AsSlice()) {
			return addr
		}
		if !first.IsValid() {
			first = addr
		}
	}
	return first
}

// deviceIndex is a device's number, 0 if there is none.
func deviceIndex(name string) int {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0
	}
	return link.Attrs().Index
}
