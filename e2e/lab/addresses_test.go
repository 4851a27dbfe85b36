package lab

import (
	"net/netip"
	"testing"
)

func TestAddressPlanHasNoOverlap(t *testing.T) {
	taken := map[netip.Prefix]string{}
	take := func(who string, prefixes ...netip.Prefix) {
		for _, p := range prefixes {
			for q, other := range taken {
				if p.Overlaps(q) {
					t.Errorf("%s of %s overlaps %s of %s", p, who, q, other)
				}
			}
			taken[p] = who
		}
	}
	host := func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()) }
	for _, on := range []lan{0, 1} {
		gateway := on.gateways()
		take("gateway", host(gateway[0]), host(gateway[1]))
	}
	for n := 1; n <= MaxNodes; n++ {
		on := lan(n % 2)
		a, gateway := nodeAddresses(n, on), on.gateways()
		take(nodeName(n), a.podCIDRs[:]...)
		take(nodeName(n), host(a.underlay[0]), host(a.underlay[1]))
		for i, family := range []string{"IPv4", "IPv6"} {
			if a.underlay[i].Masked() != gateway[i].Masked() {
				t.Errorf("%s: %s is not on the %s underlay", nodeName(n), a.underlay[i], family)
			}
			if a.podCIDRs[i] != a.podCIDRs[i].Masked() {
				t.Errorf("%s: host bits in %s", nodeName(n), a.podCIDRs[i])
			}
		}
	}
}
