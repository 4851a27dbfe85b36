package nft

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/mode"
)

// The table that checks whose addresses pods send from:
//
//	table bridge fairlead-cni {
//		map ports { type ifname : verdict; elements = { "veth3f…" : goto addresses } }
//		set macs { type ifname . ether_addr }
//		set sources4 { type ifname . ipv4_addr }
//		set sources6 { type ifname . ipv6_addr }
//		chain prerouting {
//			type filter hook prerouting priority dstnat
//			iifname vmap @ports
//		}
//		chain macs { iifname . ether saddr != @macs drop }
//		chain addresses {
//			the same, then drop what hides what it is behind a second VLAN tag,
//			then for ARP, NDP, IPv4 and IPv6, in which order a frame is one of
//			them: the sender is nobody yet, or it is in the set, or drop
//		}
//	}
//
// Only the hardware address is checked of pods without IPAM: which addresses
// they have is not known.

var (
	ports    = set{nftables.TableFamilyBridge, "ports"}
	macs     = set{nftables.TableFamilyBridge, "macs"}
	sources4 = set{nftables.TableFamilyBridge, "sources4"}
	sources6 = set{nftables.TableFamilyBridge, "sources6"}

	sourceSets = []set{ports, macs, sources4, sources6}
)

// dstnat is what nft(8) calls the first priority of family bridge,
// NF_BR_PRI_NAT_DST_BRIDGED.
const dstnat = -300

// The chains that ports leads to.
const (
	macChain     = "macs"
	addressChain = "addresses"
)

// What a pod may send from that is not IPAM's: the address of those who have
// none yet (DHCP, RFC 5227 probes; duplicate address detection), and of IPv6 the
// link's own addresses, which pods make up by themselves (RFC 4862, RFC 7217)
// and no router forwards.
var (
	nobody4   = netip.MustParsePrefix("0.0.0.0/32")
	nobody6   = netip.MustParsePrefix("::/128")
	linkLocal = netip.MustParsePrefix("fe80::/10")
)

// CheckSource has frames that come in by a port dropped unless they are from
// the pod's hardware address and, if it has addresses, from one of these. It
// reports whether it had to make what all pods need for that.
func (c *Conn) CheckSource(owner mode.Owner, port string, mac net.HardwareAddr, pod []netip.Addr) (made bool, err error) {
	made, err = c.put(sourceElements(owner, port, mac, pod), draftSource)
	if err != nil {
		return false, fmt.Errorf("check source of %s: %w", owner, err)
	}
	return made, nil
}

// VerifySource returns, in words, what differs from what CheckSource makes.
func (c *Conn) VerifySource(owner mode.Owner, port string, mac net.HardwareAddr, pod []netip.Addr) ([]string, error) {
	return c.verify(sourceElements(owner, port, mac, pod), draftSource)
}

// RepairSource makes what is missing of what CheckSource makes.
func (c *Conn) RepairSource(owner mode.Owner, port string, mac net.HardwareAddr, pod []netip.Addr) error {
	if err := c.repair(sourceElements(owner, port, mac, pod), draftSource); err != nil {
		return fmt.Errorf("repair source check of %s: %w", owner, err)
	}
	return nil
}

// sourceElements is what a pod has in the sets.
func sourceElements(owner mode.Owner, port string, mac net.HardwareAddr, pod []netip.Addr) []element {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, port)
	to := macChain
	if len(pod) != 0 {
		to = addressChain
	}
	elements := []element{
		{set: ports, key: name, chain: to, comment: owner.String(), what: port},
		{set: macs, key: concat(name, mac), comment: owner.String(), what: port + " . " + mac.String()},
	}
	for _, addr := range pod {
		s := sources4
		if addr.Is6() {
			s = sources6
		}
		elements = append(elements, element{set: s, key: concat(name, addr.AsSlice()), comment: owner.String(), what: port + " . " + addr.String()})
	}
	return elements
}

// StopCheck takes back CheckSource. It succeeds if there is nothing to take back.
func (c *Conn) StopCheck(owner mode.Owner) error {
	return c.remove(sourceSets, func(comment string) bool { return comment == owner.String() })
}

// concat is a key of two fields, each as long as a number of registers of four
// bytes.
func concat(name, field []byte) []byte {
	const register = 4
	key := append(name[:len(name):len(name)], field...)
	return append(key, make([]byte, (register-len(key)%register)%register)...)
}

// draftSource describes the table, as draftMasquerade does.
func draftSource(d *draft) error {
	table := d.conn.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: tableName})
	sets := []*nftables.Set{
		{Name: ports.name, IsMap: true, KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.NativeEndian},
		{Name: macs.name, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr)},
		{Name: sources4.name, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)},
		{Name: sources6.name, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)},
	}
	for _, s := range sets {
		s.Table = table
		if err := d.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("make nftables set %s: %w", s.Name, err)
		}
	}
	add := func(c nftables.Chain) *chain {
		c.Table = table
		return d.chain(c)
	}
	entrance := add(nftables.Chain{
		Name: "prerouting", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(dstnat),
	})
	byMAC, byAddress := add(nftables.Chain{Name: macChain}), add(nftables.Chain{Name: addressChain})

	entrance.rule(port, lookUp(ports))
	drop := verdict(expr.VerdictDrop)
	byMAC.rule(port, sourceMAC, notIn(macs), drop)
	byAddress.rule(port, sourceMAC, notIn(macs), drop)
	refuseTags(byAddress)
	checkARP(byAddress)
	checkNDP(byAddress)
	checkIP(byAddress, unix.ETH_P_IP, ipv4, sources4, nobody4)
	checkIP(byAddress, unix.ETH_P_IPV6, ipv6, sources6, nobody6, linkLocal)
	return nil
}

// sourceMAC loads the sender of a frame, the second field of a key.
var sourceMAC = match{ethernet(secondRegister, 6, 6)}

// refuseTags drops frames with two VLAN tags: whose they are is behind the
// second. The first, with which pods may send in a trunk, is not seen here: the
// kernel takes it off the frame before (skb_vlan_untag).
func refuseTags(c *chain) {
	for _, tag := range []uint16{unix.ETH_P_8021Q, unix.ETH_P_8021AD} {
		c.rule(etherType(tag), verdict(expr.VerdictDrop))
	}
}

// checkARP looks at both addresses that a pod claims to have (RFC 826).
func checkARP(c *chain) {
	isARP, drop := etherType(unix.ETH_P_ARP), verdict(expr.VerdictDrop)
	senderMAC := match{network(secondRegister, 8, 6)}
	senderIP := match{network(secondRegister, 14, net.IPv4len)}
	c.rule(isARP, port, senderMAC, notIn(macs), drop)
	c.rule(isARP, equal(network(firstRegister, 14, net.IPv4len), nobody4.Addr().AsSlice()), verdict(expr.VerdictReturn))
	c.rule(isARP, port, senderIP, notIn(sources4), drop)
}

// checkNDP looks at the address that a pod claims to have in a neighbour
// advertisement, wherever it sends it from (RFC 4861, section 4.4), and drops what
// only routers send. What is cut into fragments nobody takes (RFC 6980).
func checkNDP(c *chain) {
	const routerAdvertisement, neighbourAdvertisement = 134, 136
	drop := verdict(expr.VerdictDrop)
	message := func(kind byte) match {
		return slices.Concat(
			etherType(unix.ETH_P_IPV6),
			equal(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: firstRegister}, []byte{unix.IPPROTO_ICMPV6}),
			equal(transport(firstRegister, 0, 1), []byte{kind}),
		)
	}
	const target = 8
	c.rule(message(routerAdvertisement), drop)
	c.rule(message(neighbourAdvertisement), compare(transport(firstRegister, target, net.IPv6len), expr.CmpOpNeq, linkLocal),
		port, match{transport(secondRegister, target, net.IPv6len)}, notIn(sources6), drop)
}

func checkIP(c *chain, protocol uint16, a addresses, sources set, free ...netip.Prefix) {
	is := etherType(protocol)
	for _, prefix := range free {
		c.rule(is, sourceIn(prefix), verdict(expr.VerdictReturn))
	}
	c.rule(is, port, match{network(secondRegister, a.source, a.length)}, notIn(sources), verdict(expr.VerdictDrop))
}
