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

// nodeAddresses gives node n, counted from 1, its part of the address plan.
// Labs do not see each other or the machine's own network, so all use one plan.
func nodeAddresses(n int) addresses {
	return addresses{
		underlay: underlayAddresses(10 + n),
		podCIDRs: [2]netip.Prefix{
			netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", n)),
			netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%d::/64", n)),
		},
	}
}

// gatewayAddresses are those of the underlay's switch.
func gatewayAddresses() [2]netip.Prefix { return underlayAddresses(1) }

func underlayAddresses(host int) [2]netip.Prefix {
	return [2]netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("192.168.244.%d/24", host)),
		netip.MustParsePrefix(fmt.Sprintf("fd00:192:168:244::%d/64", host)),
	}
}

func nodeName(n int) string { return fmt.Sprintf("node-%d", n) }
