package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// read learns everything anew: what the underlay looks like and what the kernel
// has of ours.
func (k *Kernel) read() error {
	k.have, k.agreed, k.last = newState(), false, nil
	k.links = map[int]device{}
	k.underlay = Underlay{Addrs: map[netip.Addr]Device{}, Routes: map[netip.Prefix]Path{}}
	devices := map[int]device{}
	err := k.dump(unix.RTM_GETLINK, unix.AF_UNSPEC, func(m []byte) {
		if d, ok := parseDevice(m); ok {
			devices[d.index] = d
		}
	})
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	if err := k.readTunnels(devices); err != nil {
		return err
	}
	if err := k.readAddrs(devices); err != nil {
		return err
	}
	if err := k.readRoutes(devices); err != nil {
		return err
	}
	disabled, err := k.host.Sysctl("net/ipv6/conf/all/disable_ipv6")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	k.underlay.NoIPv6 = err != nil || disabled == "1"
	return k.readRules()
}

// dumpTries is how often a dump is repeated during which the kernel's table
// changed, so that it may lack something.
const dumpTries = 10

// dump asks for a whole table and hands over each message. take may see a message
// again, if the dump is repeated.
func (k *Kernel) dump(request int, family uint8, take func(m []byte)) error {
	var err error
	for range dumpTries {
		req := nl.NewNetlinkRequest(request, unix.NLM_F_DUMP)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: k.dumps}
		req.AddData(nl.NewIfInfomsg(int(family))) // of any request only the family counts
		err = req.ExecuteIter(unix.NETLINK_ROUTE, 0, func(m []byte) bool {
			take(m)
			return true
		})
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return err
		}
	}
	return err
}

// readTunnels reads our devices and what is known behind them.
func (k *Kernel) readTunnels(devices map[int]device) error {
	found := false
	for index, d := range devices {
		if !isTunnel(d.Name) {
			continue
		}
		t, ok, err := k.tunnel(index)
		if err != nil {
			return err
		}
		if ok {
			k.links[index], k.have.tunnels[d.Name] = d, t
			found = true
		}
	}
	if !found {
		return nil
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		err := k.dump(unix.RTM_GETNEIGH, family, func(m []byte) {
			if n, ok := parseNeighbour(m); ok {
				k.noteNeighbour(n, true)
			}
		})
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
	}
	return nil
}

// tunnel reads a device, ok if it is one that we could have made.
func (k *Kernel) tunnel(index int) (t Tunnel, ok bool, err error) {
	found, err := k.handle.LinkByIndex(index)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return Tunnel{}, false, nil
	}
	if err != nil {
		return Tunnel{}, false, fmt.Errorf("read device %d: %w", index, err)
	}
	vxlan, ok := found.(*netlink.Vxlan)
	if !ok {
		return Tunnel{}, false, nil
	}
	t = Tunnel{
		Name:  vxlan.Name,
		Local: addrOf(vxlan.SrcAddr).Unmap(),
		VNI:   vxlan.VxlanId,
		Port:  vxlan.Port,
		MTU:   vxlan.MTU,
	}
	copy(t.MAC[:], vxlan.HardwareAddr)
	if vxlan.Learning || vxlan.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.VNI = 0 // as nobody wants it: it is made anew
	}
	return t, true, nil
}

func (k *Kernel) readAddrs(devices map[int]device) error {
	err := k.dump(unix.RTM_GETADDR, unix.AF_UNSPEC, func(m []byte) {
		a, ok := parseAddr(m)
		d := devices[a.index]
		if ok && a.usable && d.up && !a.addr.IsLinkLocalUnicast() {
			k.underlay.Addrs[a.addr] = d.Device
			k.links[d.index] = d
		}
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	return nil
}

func (k *Kernel) readRoutes(devices map[int]device) error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := k.dump(unix.RTM_GETROUTE, family, func(m []byte) {
			r, ok := parseRoute(m)
			if !ok {
				return
			}
			d := devices[r.index]
			switch {
			case r.protocol == Protocol:
				k.have.routes[r.routeKey] = hop{d.Name, r.via, r.src, r.mtu}
				k.links[d.index] = d
			case r.ofUnderlay():
				k.addUnderlay(r, d)
			}
		})
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
	}
	return nil
}

// ofUnderlay: link-local addresses and groups are on every link and lead to no node.
func (r readRoute) ofUnderlay() bool {
	a := r.dst.Addr()
	return r.table == mainTable && r.unicast && !a.IsLinkLocalUnicast() && !a.IsMulticast()
}

func (k *Kernel) addUnderlay(r readRoute, d device) {
	k.links[d.index] = d
	if k.underlay.Routes[r.dst].OnLink { // of two routes one on the link counts
		return
	}
	path := Path{Device: d.Device, OnLink: d.Name != "" && !r.via.IsValid()}
	if r.mtu > 0 && (path.MTU == 0 || r.mtu < path.MTU) { // where a link takes less than the device
		path.MTU = r.mtu
	}
	k.underlay.Routes[r.dst] = path
}

func (k *Kernel) readRules() error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := k.dump(unix.RTM_GETRULE, family, func(m []byte) {
			if r, ok := parseRule(m); ok && r.protocol == Protocol && r.table == Table {
				k.have.rules[r.Rule] = struct{}{}
			}
		})
		if err != nil {
			return fmt.Errorf("list rules: %w", err)
		}
	}
	return nil
}
