package node

import (
	"encoding/binary"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// What the kernel says in a dump and what it says as news are the same messages:
// here they become our words. A message that is cut off, which the kernel does
// not send, is one that says nothing.

// readRoute is one route of the kernel.
type readRoute struct {
	routeKey
	via, src netip.Addr
	index    int // of the device; 0: none or several
	mtu      int // 0: the device's
	protocol int
	unicast  bool
}

func parseRoute(m []byte) (readRoute, bool) {
	if len(m) < unix.SizeofRtMsg {
		return readRoute{}, false
	}
	msg := nl.DeserializeRtMsg(m)
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofRtMsg:])
	if err != nil || msg.Flags&unix.RTM_F_CLONED != 0 {
		return readRoute{}, false
	}
	r := readRoute{protocol: int(msg.Protocol), unicast: msg.Type == unix.RTN_UNICAST}
	r.table = int(msg.Table)
	dst := netip.IPv4Unspecified() // a default route has no RTA_DST
	if msg.Family == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			dst = addrOf(a.Value)
		case unix.RTA_GATEWAY:
			r.via = addrOf(a.Value)
		case unix.RTA_PREFSRC:
			r.src = addrOf(a.Value)
		case unix.RTA_OIF:
			r.index = int(number(a.Value))
		case unix.RTA_METRICS:
			r.mtu = mtuOf(a.Value)
		case unix.RTA_TABLE: // rtm_table has 8 bits
			r.table = int(number(a.Value))
		case unix.RTA_VIA: // an IPv4 route by an IPv6 gateway
			r.via = netip.IPv6Unspecified()
		}
	}
	r.dst = netip.PrefixFrom(dst, int(msg.Dst_len))
	return r, true
}

// mtuOf is the MTU among a route's metrics, 0 if it is not.
func mtuOf(metrics []byte) int {
	attrs, err := nl.ParseRouteAttr(metrics)
	if err != nil {
		return 0
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTAX_MTU {
			return int(number(a.Value))
		}
	}
	return 0
}

// readNeighbour is an entry of a neighbour table or, if forward is set, of a
// device's forwarding table.
type readNeighbour struct {
	index     int
	forward   bool
	permanent bool
	addr      netip.Addr
	mac       MAC
}

// sizeofNdMsg is that of struct ndmsg, linux/neighbour.h: family, three bytes of
// padding, ifindex, state, flags, type.
const sizeofNdMsg = 12

func parseNeighbour(m []byte) (readNeighbour, bool) {
	if len(m) < sizeofNdMsg {
		return readNeighbour{}, false
	}
	attrs, err := nl.ParseRouteAttr(m[sizeofNdMsg:])
	if err != nil {
		return readNeighbour{}, false
	}
	n := readNeighbour{
		index:     int(int32(binary.NativeEndian.Uint32(m[4:]))),
		forward:   m[0] == unix.AF_BRIDGE,
		permanent: binary.NativeEndian.Uint16(m[8:])&unix.NUD_PERMANENT != 0,
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.NDA_DST:
			n.addr = addrOf(a.Value)
		case unix.NDA_LLADDR:
			copy(n.mac[:], a.Value)
		}
	}
	return n, true
}

// readRule is a rule that leads somewhere.
type readRule struct {
	Rule
	table, protocol int
}

func parseRule(m []byte) (readRule, bool) {
	if len(m) < unix.SizeofRtMsg { // struct fib_rule_hdr is laid out as struct rtmsg
		return readRule{}, false
	}
	msg := nl.DeserializeRtMsg(m)
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofRtMsg:])
	if err != nil {
		return readRule{}, false
	}
	r := readRule{table: int(msg.Table)}
	for _, a := range attrs {
		switch a.Attr.Type {
		case nl.FRA_SRC:
			r.From = netip.PrefixFrom(addrOf(a.Value), int(msg.Src_len))
		case nl.FRA_TABLE:
			r.table = int(number(a.Value))
		case nl.FRA_PROTOCOL:
			r.protocol = int(a.Value[0])
		}
	}
	return r, true
}

// readAddr is an address of a device.
type readAddr struct {
	addr   netip.Addr
	index  int
	usable bool // not waiting for duplicate address detection, nor failed by it
}

func parseAddr(m []byte) (readAddr, bool) {
	if len(m) < unix.SizeofIfAddrmsg {
		return readAddr{}, false
	}
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfAddrmsg:])
	if err != nil {
		return readAddr{}, false
	}
	flags := uint32(m[2])
	a := readAddr{index: int(binary.NativeEndian.Uint32(m[4:]))}
	var local netip.Addr
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFA_ADDRESS:
			a.addr = addrOf(attr.Value)
		case unix.IFA_LOCAL: // of a point-to-point link, whose IFA_ADDRESS is the peer's
			local = addrOf(attr.Value)
		case unix.IFA_FLAGS: // ifa_flags has 8 bits
			flags = number(attr.Value)
		}
	}
	if local.IsValid() {
		a.addr = local
	}
	a.usable = flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0
	return a, true
}

func parseDevice(m []byte) (device, bool) {
	if len(m) < unix.SizeofIfInfomsg || m[0] != unix.AF_UNSPEC { // AF_BRIDGE: news of a port
		return device{}, false
	}
	msg := nl.DeserializeIfInfomsg(m)
	attrs, err := nl.ParseRouteAttr(m[unix.SizeofIfInfomsg:])
	if err != nil {
		return device{}, false
	}
	d := device{index: int(msg.Index), up: msg.Flags&unix.IFF_UP != 0}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			d.Name = nl.BytesToString(a.Value)
		case unix.IFLA_MTU:
			d.MTU = int(number(a.Value))
		}
	}
	return d, true
}

func addrOf(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}
