package link

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
)

// Bridge is a bridge that is to be made.
type Bridge struct {
	Name string
	// MAC stays as it is when it is given. One chosen by the kernel would follow
	// the lowest of the ports, and each change of it cuts off pods until their
	// neighbour entries expire.
	MAC           net.HardwareAddr
	MTU           int  // 0: the kernel's default
	VLANFiltering bool // ports have their VLANs (see PortVLAN)
}

// AddBridge makes a bridge that is up. The error wraps unix.EEXIST if the name is
// taken.
func (ns *NS) AddBridge(b Bridge) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU, attrs.Flags = b.Name, b.MAC, b.MTU, net.FlagUp
	bridge, with := &netlink.Bridge{LinkAttrs: attrs}, ""
	if b.VLANFiltering {
		bridge.VlanFiltering, with = &b.VLANFiltering, " with VLAN filtering"
	}
	if err := ns.netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("add bridge %s%s: %w", b.Name, with, err)
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

// SetMaster makes an interface a port of a bridge.
func (ns *NS) SetMaster(port, bridge Device) error {
	if err := ns.netlink.LinkSetMasterByIndex(port.link(), bridge.Index); err != nil {
		return fmt.Errorf("make %s a port of %s: %w", port.Name, bridge.Name, err)
	}
	return nil
}

// SetHairpin sets whether a bridge sends a frame back out of the port it came
// in by.
func (ns *NS) SetHairpin(port Device, on bool) error {
	if err := ns.netlink.LinkSetHairpin(port.link(), on); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", port.Name, err)
	}
	return nil
}

// SetIsolated sets whether a bridge keeps frames of this port from the others
// that are isolated too.
func (ns *NS) SetIsolated(port Device, on bool) error {
	if err := ns.netlink.LinkSetIsolated(port.link(), on); err != nil {
		return fmt.Errorf("set isolation of %s: %w", port.Name, err)
	}
	return nil
}

// Port is how a bridge treats one of its ports.
type Port struct {
	Hairpin  bool // see SetHairpin
	Isolated bool // see SetIsolated
}

// Port reads how a bridge treats one of its ports.
func (ns *NS) Port(port Device) (Port, error) {
	info, err := ns.netlink.LinkGetProtinfo(port.link())
	if err != nil {
		return Port{}, fmt.Errorf("read settings of port %s: %w", port.Name, err)
	}
	return Port{Hairpin: info.Hairpin, Isolated: info.Isolated}, nil
}
