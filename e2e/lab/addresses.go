package lab

import (
	"fmt"
	"net/netip"
)

// MaxNodes is how many nodes a lab can have: so many fit the underlay's prefix
// and, as decimal digits, a group of an IPv6 address.
const MaxNodes = 50

// addresses is what one node is reached by, IPv4 first.
type addresses struct {
	underlay [2]netip.Prefix // the address of its eth0
	podCIDRs [2]netip.Prefix
}

// lan is a link of the underlay: 0 is where nodes are, 1 is behind a router.
type lan int

// nodeAddresses gives node n, counted from 1, its part of the address plan.
// Labs do not see each other or the machine's own network, so all use one plan.
func nodeAddresses(n int, on lan) addresses {
	return addresses{
		underlay: on.addresses(10 + n),
		podCIDRs: [2]netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", n)),
		},
	}
}

// Gateway is the address, of IPv4, that the underlay's namespace has for the
// nodes of the first link.
func Gateway() netip.Addr { return lan(0).gateways()[0].Addr() }

// gateways are the addresses of the link's switch.
func (l lan) gateways() [2]netip.Prefix { return l.addresses(1) }

func (l lan) addresses(host int) [2]netip.Prefix {
	return [2]netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("192.168.%d.%d/24", 244+l, host)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:192:168:%d::%d/64", 244+l, host)),
	}
}

// switchName is that of the link's switch.
func (l lan) switchName() string {
	if l == 0 {
		return "switch"
	}
	return fmt.Sprintf("switch-%d", l)
}

func nodeName(n int) string { return fmt.Sprintf("node-%d", n) }
