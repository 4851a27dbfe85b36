package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Device is an interface as the kernel describes it.
type Device struct {
	Index   int
	Name    string
	Kind    string // as the kernel names drivers: "bridge", "veth", …
	MAC     net.HardwareAddr
	MTU     int
	Up      bool // wanted up by its owner
	Running bool // RFC 2863: up in fact, and everything above it knows
	Promisc bool // wanted promiscuous by its owner, not by a capture
	Group   uint32
	Master  int // index of the bridge whose port it is; 0: none
	VLAN    BridgeVLAN
	Peer    int // of a veth: index of the other end, of a macvlan: of its master; in the namespace of that one
}

// BridgeVLAN is how a bridge deals with VLANs; of other interfaces it is zero.
type BridgeVLAN struct {
	Filtering bool // it looks at them
	Default   int  // the native VLAN of new ports; 0: none
}

// Device finds an interface by name. The error wraps ErrNoDevice if there is none.
func (ns *NS) Device(name string) (Device, error) {
	found, err := ns.netlink.LinkByName(name)
	return device(found, name, err)
}

// DeviceAt finds an interface by index. The error wraps ErrNoDevice if there is none.
func (ns *NS) DeviceAt(index int) (Device, error) {
	found, err := ns.netlink.LinkByIndex(index)
	return device(found, fmt.Sprintf("number %d", index), err)
}

func device(found netlink.Link, name string, err error) (Device, error) {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return Device{}, fmt.Errorf("find interface %s: %w", name, ErrNoDevice)
	}
	if err != nil {
		return Device{}, fmt.Errorf("find interface %s: %w", name, err)
	}
	return described(found), nil
}

// Devices returns all interfaces.
func (ns *NS) Devices() ([]Device, error) {
	found, err := retry(ns.netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	devices := make([]Device, 0, len(found))
	for _, l := range found {
		devices = append(devices, described(l))
	}
	return devices, nil
}

func described(found netlink.Link) Device {
	a := found.Attrs()
	return Device{
		Index:   a.Index,
		Name:    a.Name,
		Kind:    found.Type(),
		MAC:     a.HardwareAddr,
		MTU:     a.MTU,
		Up:      a.RawFlags&unix.IFF_UP != 0,
		Running: a.OperState == netlink.OperUp,
		Promisc: a.RawFlags&unix.IFF_PROMISC != 0,
		Group:   a.Group,
		Master:  a.MasterIndex,
		VLAN:    bridgeVLAN(found),
		Peer:    a.ParentIndex,
	}
}

func bridgeVLAN(found netlink.Link) BridgeVLAN {
	bridge, ok := found.(*netlink.Bridge)
	if !ok || bridge.VlanFiltering == nil || bridge.VlanDefaultPVID == nil {
		return BridgeVLAN{}
	}
	return BridgeVLAN{Filtering: *bridge.VlanFiltering, Default: int(*bridge.VlanDefaultPVID)}
}

// NewMAC makes up a hardware address: unicast and locally administered (IEEE
// 802, section 8.4), with 46 random bits.
func NewMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	binary.BigEndian.PutUint32(mac[2:], rand.Uint32())
	binary.BigEndian.PutUint16(mac, uint16(rand.Uint32())&^0x0100|0x0200)
	return mac
}

// link names an interface to netlink.
func (d Device) link() netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: d.Index, Name: d.Name}}
}

// SetUp sets an interface up.
func (ns *NS) SetUp(d Device) error {
	if err := ns.netlink.LinkSetUp(d.link()); err != nil {
		return fmt.Errorf("set %s up: %w", d.Name, err)
	}
	return nil
}

// SetDown sets an interface down.
func (ns *NS) SetDown(d Device) error {
	if err := ns.netlink.LinkSetDown(d.link()); err != nil {
		return fmt.Errorf("set %s down: %w", d.Name, err)
	}
	return nil
}

// SetPromisc sets whether an interface takes frames for every address.
func (ns *NS) SetPromisc(d Device, on bool) error {
	set := ns.netlink.SetPromiscOff
	if on {
		set = ns.netlink.SetPromiscOn
	}
	if err := set(d.link()); err != nil {
		return fmt.Errorf("set promiscuous mode of %s: %w", d.Name, err)
	}
	return nil
}

// SetMAC sets the hardware address of an interface. Setting the one it has is
// not in vain: a bridge whose address was ever set keeps it, and an interface
// with arp_notify or ndisc_notify tells its neighbours (see Announce).
func (ns *NS) SetMAC(d Device, mac net.HardwareAddr) error {
	if err := ns.netlink.LinkSetHardwareAddr(d.link(), mac); err != nil {
		return fmt.Errorf("set hardware address of %s to %s: %w", d.Name, mac, err)
	}
	return nil
}

// Announce has the kernel send a gratuitous ARP (RFC 5227, section 3) for each
// IPv4 address and an unsolicited neighbour advertisement (RFC 4861, section
// 7.2.6) for each IPv6 address of an interface that is up, so that neighbours
// who knew an address by its last owner's hardware address learn the new one
// now and not after half a minute.
//
// The kernel does so for an interface with the sysctls arp_notify and
// ndisc_notify when its hardware address is set, which this does to the one it
// has. A packet socket would cost ten milliseconds: closing one waits for every
// processor (synchronize_net).
func (ns *NS) Announce(d Device) error {
	if err := ns.SetMAC(d, d.MAC); err != nil {
		return fmt.Errorf("announce %s: %w", d.Name, err)
	}
	return nil
}

// Delete removes the interface of that name if it is of one of these kinds, of a
// veth both ends, and reports whether there was one.
func (ns *NS) Delete(name string, kinds ...string) (bool, error) {
	d, err := ns.Device(name)
	if errors.Is(err, ErrNoDevice) {
		return false, nil
	}
	if err != nil || !slices.Contains(kinds, d.Kind) {
		return false, err
	}
	err = ns.netlink.LinkDel(d.link())
	if err != nil && !errors.Is(err, unix.ENODEV) { // gone in between
		return false, fmt.Errorf("delete %s: %w", d.Name, err)
	}
	return true, nil
}
