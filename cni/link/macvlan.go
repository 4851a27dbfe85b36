package link

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// Macvlan is an interface with a hardware address of its own on the link of
// another one, its master, which may be in another namespace.
type Macvlan struct {
	Name       string
	MAC        net.HardwareAddr // in mode passthru the kernel takes the master's instead
	MTU        int              // 0: the master's
	Group      uint32           // 0: the default
	Master     Device
	Mode       string // one that MacvlanModes has
	BCQueueLen int    // frames to many that wait, at most, for all of the master's macvlans; 0: the kernel's default
	NS         *NS    // where the interface is to be
}

// macvlanModes are named as in ip-link(8), less the mode source, which needs a
// list of hardware addresses.
var macvlanModes = map[string]netlink.MacvlanMode{
	"bridge":   netlink.MACVLAN_MODE_BRIDGE,   // reaches the others of its master
	"private":  netlink.MACVLAN_MODE_PRIVATE,  // does not
	"vepa":     netlink.MACVLAN_MODE_VEPA,     // by a switch outside that sends frames back
	"passthru": netlink.MACVLAN_MODE_PASSTHRU, // is alone on its master, with the master's hardware address
}

// AddMacvlan makes the interface where it belongs, down, by one message to the
// namespace of its master, ns. The error wraps unix.EEXIST if the name is taken;
// kernels before 6.15 mean by that the namespace of the master too.
func (ns *NS) AddMacvlan(m Macvlan) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = m.Name, m.MAC, m.MTU
	attrs.Group = m.Group
	attrs.ParentIndex, attrs.Namespace = m.Master.Index, netlink.NsFd(m.NS.file)
	link := &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes[m.Mode], BCQueueLen: uint32(m.BCQueueLen)}
	if err := ns.netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("add macvlan %s on %s: %w", m.Name, m.Master.Name, err)
	}
	return nil
}

// MacvlanMode reads the mode of a macvlan, "" if it is one that AddMacvlan does
// not know.
func (ns *NS) MacvlanMode(d Device) (string, error) {
	found, err := ns.netlink.LinkByIndex(d.Index)
	if err != nil {
		return "", fmt.Errorf("read mode of %s: %w", d.Name, err)
	}
	macvlan, ok := found.(*netlink.Macvlan)
	if !ok {
		return "", fmt.Errorf("read mode of %s: it is a %s", d.Name, found.Type())
	}
	for name, mode := range macvlanModes {
		if macvlan.Mode == mode {
			return name, nil
		}
	}
	return "", nil
}

// Rename gives an interface that is down another name. The error wraps
// unix.EEXIST if it is taken.
func (ns *NS) Rename(d Device, name string) error {
	if err := ns.netlink.LinkSetName(d.link(), name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", d.Name, name, err)
	}
	return nil
}
