package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Address is an address of an interface.
type Address struct {
	netip.Prefix // the address itself and the length of its subnet's prefix

	read netlink.Addr // as the kernel has it; zero: it was not read
}

// Addresses returns the addresses of an interface, of both families.
func (ns *NS) Addresses(d Device) ([]Address, error) {
	read, err := retry(func() ([]netlink.Addr, error) {
		return ns.netlink.AddrList(d.link(), netlink.FAMILY_ALL)
	})
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", d.Name, err)
	}
	addrs := make([]Address, 0, len(read))
	for _, a := range read {
		addrs = append(addrs, Address{Prefix: prefixOf(a.IPNet), read: a})
	}
	return addrs, nil
}

// AddAddress gives an interface an address. The error wraps unix.EEXIST if it
// has it.
//
// IPv6 addresses are usable at once, without duplicate address detection (RFC
// 4862, section 5.4): IPAM knows that they are unique, and asking the link
// takes a second.
func (ns *NS) AddAddress(d Device, addr netip.Prefix) error {
	new := &netlink.Addr{IPNet: ipNet(addr)}
	if addr.Addr().Is6() {
		new.Flags = unix.IFA_F_NODAD
	}
	return ns.addAddress(d, new)
}

// AddUniqueAddress is AddAddress, but an IPv6 address is not usable before
// WaitUnique.
func (ns *NS) AddUniqueAddress(d Device, addr netip.Prefix) error {
	return ns.addAddress(d, &netlink.Addr{IPNet: ipNet(addr)})
}

func (ns *NS) addAddress(d Device, new *netlink.Addr) error {
	if err := ns.netlink.AddrAdd(d.link(), new); err != nil {
		return fmt.Errorf("add address %s to %s: %w", new.IPNet, d.Name, err)
	}
	return nil
}

// RestoreAddress gives an interface back an address that was read and then
// deleted, with the label, scope and broadcast address that it had.
func (ns *NS) RestoreAddress(d Device, addr Address) error {
	old := addr.read
	if old.Broadcast == nil {
		old.Broadcast = net.IPv4zero // netlink would make one up
	}
	if err := ns.netlink.AddrAdd(d.link(), &old); err != nil {
		return fmt.Errorf("restore address %s of %s: %w", addr, d.Name, err)
	}
	return nil
}

// DeleteAddress takes an address from an interface. It succeeds if either is
// gone already.
func (ns *NS) DeleteAddress(d Device, addr Address) error {
	old := addr.read
	if old.IPNet == nil {
		old.IPNet = ipNet(addr.Prefix)
	}
	err := ns.netlink.AddrDel(d.link(), &old)
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete address %s from %s: %w", addr, d.Name, err)
	}
	return nil
}

// retry repeats a listing during which the kernel's table changed, so that the
// list may be incomplete: a few times, because one that takes several messages
// can be interrupted again on a busy node.
func retry[T any](list func() (T, error)) (found T, err error) {
	for range 10 {
		found, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return found, err
}

// ipNet is p in the words of netlink, host bits kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is what the kernel said, in our words. nil, which netlink has for
// the destination of a default route, is the zero Prefix.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
