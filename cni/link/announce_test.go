package link_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/cni/link"
)

// TestAnnounce has the host know the pod's addresses by a hardware address that
// is gone, as after the addresses changed hands.
func TestAnnounce(t *testing.T) {
	tests := map[string]struct{ gateway, pod netip.Prefix }{
		"IPv4": {netip.MustParsePrefix("10.7.0.1/24"), netip.MustParsePrefix("10.7.0.2/24")},
		"IPv6": {netip.MustParsePrefix("fd07::1/64"), netip.MustParsePrefix("fd07::2/64")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host, hostNS := open(t)
			pod, _ := open(t)
			br := addBridge(t, host)
			connect(t, host, pod, br)
			check(t, host.AddAddress(br, tt.gateway))

			eth0 := must[link.Device](t)(pod.Device("eth0"))
			check(t, pod.AddAddress(eth0, tt.pod))
			check(t, pod.SetUp(eth0))
			must[link.Device](t)(host.WaitRunning("port0", patience))
			// Not before: the kernel forgets neighbours of a bridge that has no carrier.
			hostNS.RunT(t, "ip", "neigh", "add", tt.pod.Addr().String(), "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", "br0")
			check(t, pod.SetSysctls(
				link.Sysctl{Path: "net/ipv4/conf/eth0/arp_notify", Value: "1"},
				link.Sysctl{Path: "net/ipv6/conf/eth0/ndisc_notify", Value: "1"},
			))
			check(t, pod.Announce(eth0))

			// The packet may still be on its way through the bridge.
			var known string
			for end := time.Now().Add(patience); time.Now().Before(end); {
				known = hostNS.RunT(t, "ip", "neigh", "show", tt.pod.Addr().String(), "dev", "br0")
				if strings.Contains(known, eth0.MAC.String()) {
					return
				}
			}
			t.Errorf("the host knows %s as %q, not by %s", tt.pod, known, eth0.MAC)
		})
	}
}
