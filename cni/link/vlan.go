package link

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// PortVLAN is a range of VLANs (IEEE 802.1Q) that a bridge with VLAN filtering
// lets through a port.
type PortVLAN struct {
	First, Last int
	Native      bool // that of frames without a tag, in and out; of one VLAN at most
}

func (v PortVLAN) String() string {
	if v.First == v.Last {
		return fmt.Sprintf("VLAN %d", v.First)
	}
	return fmt.Sprintf("VLANs %d to %d", v.First, v.Last)
}

// SetVLANFiltering sets whether a bridge looks at VLANs.
func (ns *NS) SetVLANFiltering(bridge Device, on bool) error {
	named := netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Index: bridge.Index, Name: bridge.Name}}
	if err := ns.netlink.BridgeSetVlanFiltering(&named, on); err != nil {
		return fmt.Errorf("set VLAN filtering of %s: %w", bridge.Name, err)
	}
	return nil
}

// AddVLAN lets VLANs through a port.
func (ns *NS) AddVLAN(port Device, v PortVLAN) error {
	last := uint16(v.Last)
	if v.First == v.Last {
		last = 0 // no range, which could not be native
	}
	err := ns.netlink.BridgeVlanAddRange(port.link(), uint16(v.First), last, v.Native, v.Native, false, true)
	if err != nil {
		return fmt.Errorf("add %s to port %s: %w", v, port.Name, err)
	}
	return nil
}

// DeleteVLAN lets a VLAN through a port no longer. It succeeds if it did not.
func (ns *NS) DeleteVLAN(port Device, id int) error {
	err := ns.netlink.BridgeVlanDel(port.link(), uint16(id), false, false, false, true)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete VLAN %d from port %s: %w", id, port.Name, err)
	}
	return nil
}

// VLANs returns the VLANs that are let through a port, each by itself.
func (ns *NS) VLANs(port Device) ([]PortVLAN, error) {
	read, err := retry(ns.netlink.BridgeVlanList)
	if err != nil {
		return nil, fmt.Errorf("list VLANs: %w", err)
	}
	var vlans []PortVLAN
	for _, info := range read[int32(port.Index)] {
		vlans = append(vlans, PortVLAN{
			First: int(info.Vid), Last: int(info.Vid),
			Native: info.Flags&nl.BRIDGE_VLAN_INFO_PVID != 0,
		})
	}
	return vlans, nil
}
