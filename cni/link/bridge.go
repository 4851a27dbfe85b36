package link

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
)

// AddBridge makes a bridge that is up. A given hardware address stays as it is;
// one chosen by the kernel would follow the lowest of the ports, and each
// change of it cuts off pods until their neighbour entries expire. mtu 0 is the
// kernel's default. The error wraps unix.EEXIST if the name is taken.
func (ns *NS) AddBridge(name string, mac net.HardwareAddr, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU, attrs.Flags = name, mac, mtu, net.FlagUp
	if err := ns.netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return nil
}

// Ports returns the interfaces that are ports of a bridge.
func (ns *NS) Ports(bridge Device) ([]Device, error) {
	all, err := ns.Devices()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(d Device) bool { return d.Master != bridge.Index }), nil
}

// SetHairpin sets whether a bridge sends a frame back out of the port it came
// in by.
func (ns *NS) SetHairpin(port Device, on bool) error {
	if err := ns.netlink.LinkSetHairpin(port.link(), on); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", port.Name, err)
	}
	return nil
}

// Hairpin reports whether a bridge sends a frame back out of the port it came
// in by.
func (ns *NS) Hairpin(port Device) (bool, error) {
	info, err := ns.netlink.LinkGetProtinfo(port.link())
	if err != nil {
		return false, fmt.Errorf("read hairpin mode of %s: %w", port.Name, err)
	}
	return info.Hairpin, nil
}
