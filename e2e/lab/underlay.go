package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

const underlayName = "underlay" // of the namespace

// newUnderlay makes the network between the nodes: for each link a bridge that is
// a switch and the default gateway of its nodes. The gateway knows the links and
// nothing beyond; of pods it has never heard.
func newUnderlay(d dir) (*netns.NS, error) {
	ns, err := newNamespace(d.netns(underlayName))
	if err != nil {
		return nil, err
	}
	if err := ns.Do(func() error { return setSysctls(append(forwarding, noDAD...)) }); err != nil {
		return ns, err
	}
	link, err := netlink.NewHandleAt(ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return ns, err
	}
	defer link.Close()
	if err := setUp(link, "lo"); err != nil {
		return ns, err
	}
	for _, on := range []lan{0, 1} {
		if err := addSwitch(link, on); err != nil {
			return ns, err
		}
	}
	return ns, nil
}

func addSwitch(link *netlink.Handle, on lan) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = on.switchName()
	// A bridge without a MAC address of its own takes the lowest of its ports':
	// it would change under the nodes as they join.
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0x5c, 0, 0, 0, byte(on) + 1}
	if err := link.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("make bridge %s: %w", attrs.Name, err)
	}
	return addAddresses(link, attrs.Name, on.gateways())
}

// plug connects a node's namespace to a switch: a veth pair of which one end is a
// port of the switch and the other the node's eth0.
func plug(underlay *netns.NS, on lan, node *netns.NS, port string) error {
	link, err := netlink.NewHandleAt(underlay.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer link.Close()
	bridge, err := link.LinkByName(on.switchName())
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", on.switchName(), err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = port
	attrs.MasterIndex = bridge.Attrs().Index
	veth := &netlink.Veth{
		LinkAttrs:     attrs,
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(node.Handle()),
	}
	if err := link.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth %s: %w", port, err)
	}
	return setUp(link, port)
}

// forwarding makes a router.
var forwarding = []sysctl{
	{"net/ipv4/ip_forward", "1"},
	{"net/ipv6/conf/all/forwarding", "1"},
}

// noDAD is for namespaces whose addresses are unique by plan: duplicate address
// detection would keep link-local addresses, which neighbour discovery needs,
// unusable for a second or two.
var noDAD = []sysctl{
	{"net/ipv6/conf/all/accept_dad", "0"},
	{"net/ipv6/conf/default/accept_dad", "0"},
}

type sysctl struct{ key, value string }

// setSysctls writes to the network namespace of the calling thread.
func setSysctls(sysctls []sysctl) error {
	for _, s := range sysctls {
		if err := os.WriteFile("/proc/sys/"+s.key, []byte(s.value), 0); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}

func setUp(link *netlink.Handle, name string) error {
	l, err := link.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := link.LinkSetUp(l); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// addAddresses sets a link up and gives it addresses, which are unique by plan.
func addAddresses(link *netlink.Handle, name string, addrs [2]netip.Prefix) error {
	if err := setUp(link, name); err != nil {
		return err
	}
	l, err := link.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := link.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", a, name, err)
		}
	}
	return nil
}

// ipNet is what netlink wants in place of a Prefix. Host bits are kept.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}
}
