package node

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/link"
)

// writer makes the kernel have what is wanted and collects what went wrong.
type writer struct {
	*Kernel
	errs []error
}

// bring is Kernel.bring. What is new comes before what is gone, in the order
// in which one thing needs the other, and what is gone goes in the opposite one:
// a node whose address changes is reached all the time.
func (w *writer) bring(want Plan, old *Plan) {
	put(w, want.tunnels(), w.have.tunnels, w.putTunnel)
	for _, t := range want.Tunnels {
		if _, ok := w.have.tunnels[t.Name]; !ok {
			want = want.without(t.Name) // it would fail once for each node
		}
	}
	put(w, want.neighbours(), w.have.neighbours, w.putNeighbour)
	put(w, want.forwards(), w.have.forwards, w.putForward)
	put(w, want.routes(), w.have.routes, w.putRoute)
	put(w, want.rules(), w.have.rules, w.putRule)

	remove(w, want.rules(), before(old, Plan.rules, w.have.rules), w.have.rules, w.removeRule)
	remove(w, want.routes(), before(old, Plan.routes, w.have.routes), w.have.routes, w.removeRoute)
	remove(w, want.forwards(), before(old, Plan.forwards, w.have.forwards), w.have.forwards, w.removeForward)
	remove(w, want.neighbours(), before(old, Plan.neighbours, w.have.neighbours), w.have.neighbours, w.removeNeighbour)
	remove(w, want.tunnels(), before(old, Plan.tunnels, w.have.tunnels), w.have.tunnels, w.removeTunnel)
}

// put writes what have lacks of want. write is told what was there before, if
// anything was.
func put[K, V comparable](w *writer, want iter.Seq2[K, V], have map[K]V, write func(key K, value V, before *V) error) {
	for key, value := range want {
		old, ok := have[key]
		if ok && old == value {
			continue
		}
		before := &old
		if !ok {
			before = nil
		}
		if w.did(write(key, value, before)) {
			have[key] = value
		}
	}
}

// before is what was wanted before, or all that the kernel has if that is not known.
func before[K, V comparable](old *Plan, list func(Plan) iter.Seq2[K, V], have map[K]V) iter.Seq2[K, V] {
	if old == nil {
		return maps.All(have)
	}
	return list(*old)
}

// remove removes what of old have has and want has not.
func remove[K, V comparable](w *writer, want, old iter.Seq2[K, V], have map[K]V, unwrite func(K, V) error) {
	wanted := map[K]struct{}{}
	for key := range want {
		wanted[key] = struct{}{}
	}
	for key := range old {
		value, is := have[key]
		if _, ok := wanted[key]; is && !ok && w.did(unwrite(key, value)) {
			delete(have, key)
		}
	}
}

// did notes a write, or an error if there is one.
func (w *writer) did(err error) bool {
	if err != nil {
		w.errs = append(w.errs, err)
		return false
	}
	w.wrote++
	return true
}

// gone turns the error of a removal into nil if there was nothing to remove.
func gone(err error) error {
	for _, is := range []error{unix.ESRCH, unix.ENOENT, unix.ENODEV, unix.EADDRNOTAVAIL} {
		if errors.Is(err, is) {
			return nil
		}
	}
	return err
}

func (w *writer) putTunnel(name string, t Tunnel, before *Tunnel) error {
	if before != nil && *before != t {
		if err := w.removeTunnel(name, *before); err != nil {
			return err
		}
		w.have.forget(name)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = name, t.MAC[:], t.MTU
	vxlan := &netlink.Vxlan{
		LinkAttrs: attrs,
		VxlanId:   t.VNI,
		Port:      t.Port,
		SrcAddr:   t.Local.AsSlice(),
		Learning:  false,
	}
	if err := w.handle.LinkAdd(vxlan); err != nil {
		return fmt.Errorf("add VXLAN device %s: %w", name, err)
	}
	if err := w.readyTunnel(vxlan); err != nil {
		_ = w.handle.LinkDel(vxlan)
		return err
	}
	w.links[vxlan.Index] = device{Device{name, t.MTU}, vxlan.Index, true}
	return nil
}

// readyTunnel sets a new tunnel up.
func (w *writer) readyTunnel(vxlan *netlink.Vxlan) error {
	name := vxlan.Name
	err := w.host.SetSysctls(
		// Packets of other nodes come out of the tunnel from addresses to which
		// this one sends by its uplink: the reverse path filter must let them in.
		// (2 is loose, and the kernel takes the larger one of this and "all".)
		link.Sysctl{Path: "net/ipv4/conf/" + name + "/rp_filter", Value: "2"},
		link.Sysctl{Path: "net/ipv6/conf/" + name + "/disable_ipv6", Value: "0"},
		link.Sysctl{Path: "net/ipv6/conf/" + name + "/accept_ra", Value: "0"},
		// IN6_ADDR_GEN_MODE_NONE: it sends nothing of its own.
		link.Sysctl{Path: "net/ipv6/conf/" + name + "/addr_gen_mode", Value: "1"},
	)
	if err != nil {
		return err
	}
	err = w.handle.LinkSetUp(vxlan)
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("UDP port %d is %w: %w", vxlan.Port, ErrPortTaken, err)
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func (w *writer) removeTunnel(name string, _ Tunnel) error {
	index := w.index(name)
	if _, err := w.host.Delete(name, "vxlan"); err != nil {
		return err
	}
	delete(w.links, index)
	return nil
}

func (w *writer) putNeighbour(k neighbourKey, mac MAC, _ *MAC) error {
	if err := w.handle.NeighSet(w.neighbour(k, mac)); err != nil {
		return fmt.Errorf("set neighbour %s dev %s: %w", k.addr, k.tunnel, err)
	}
	return nil
}

func (w *writer) removeNeighbour(k neighbourKey, mac MAC) error {
	if err := gone(w.handle.NeighDel(w.neighbour(k, mac))); err != nil {
		return fmt.Errorf("delete neighbour %s dev %s: %w", k.addr, k.tunnel, err)
	}
	return nil
}

func (w *writer) neighbour(k neighbourKey, mac MAC) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    w.index(k.tunnel),
		State:        netlink.NUD_PERMANENT,
		IP:           k.addr.AsSlice(),
		HardwareAddr: mac[:],
	}
}

func (w *writer) putForward(k forwardKey, to netip.Addr, _ *netip.Addr) error {
	if err := w.handle.NeighSet(w.forward(k, to)); err != nil {
		return fmt.Errorf("set forwarding of %s to %s dev %s: %w", k.mac, to, k.tunnel, err)
	}
	return nil
}

func (w *writer) removeForward(k forwardKey, to netip.Addr) error {
	if err := gone(w.handle.NeighDel(w.forward(k, to))); err != nil {
		return fmt.Errorf("delete forwarding of %s to %s dev %s: %w", k.mac, to, k.tunnel, err)
	}
	return nil
}

func (w *writer) forward(k forwardKey, to netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex:    w.index(k.tunnel),
		Family:       unix.AF_BRIDGE,
		State:        netlink.NUD_PERMANENT,
		Flags:        netlink.NTF_SELF,
		IP:           to.AsSlice(),
		HardwareAddr: k.mac[:],
	}
}

// putRoute replaces a route only if it is known to be ours: otherwise one of
// somebody else to the same destination would be overwritten.
func (w *writer) putRoute(k routeKey, h hop, before *hop) error {
	set := w.handle.RouteAdd
	if before != nil {
		set = w.handle.RouteReplace
	}
	err := set(w.route(k, h))
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("%w, and it is not Fairlead's", err)
	}
	if err != nil {
		return fmt.Errorf("set route %s via %s dev %s: %w", k.dst, h.via, h.dev, err)
	}
	return nil
}

func (w *writer) removeRoute(k routeKey, h hop) error {
	if err := gone(w.handle.RouteDel(w.route(k, h))); err != nil {
		return fmt.Errorf("delete route %s via %s dev %s: %w", k.dst, h.via, h.dev, err)
	}
	return nil
}

func (w *writer) route(k routeKey, h hop) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: w.index(h.dev),
		Dst:       ipNet(k.dst),
		Gw:        h.via.AsSlice(),
		Src:       h.src.AsSlice(),
		Table:     k.table,
		Protocol:  Protocol,
		MTU:       h.mtu,
	}
	if isTunnel(h.dev) && h.via.Is4() {
		r.Flags = unix.RTNH_F_ONLINK
	}
	return r
}

func (w *writer) putRule(r Rule, _ struct{}, _ *struct{}) error {
	if err := w.handle.RuleAdd(rule(r)); err != nil {
		return fmt.Errorf("add rule from %s lookup %d: %w", r.From, Table, err)
	}
	return nil
}

func (w *writer) removeRule(r Rule, _ struct{}) error {
	if err := gone(w.handle.RuleDel(rule(r))); err != nil {
		return fmt.Errorf("delete rule from %s lookup %d: %w", r.From, Table, err)
	}
	return nil
}

// rulePriority is before that of the main table, 32766.
const rulePriority = 7250

func rule(r Rule) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Src, rule.Table, rule.Priority, rule.Protocol = ipNet(r.From), Table, rulePriority, Protocol
	return rule
}

// index is that of a device that is ours or part of the underlay, 0 if there is
// none: the kernel then says so.
func (w *writer) index(name string) int {
	for i, d := range w.links {
		if d.Name == name {
			return i
		}
	}
	return 0
}

// ipNet is p in the words of netlink.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
