package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// How each other node is reached, and why not.
func TestPeers(t *testing.T) {
	p := NewPlanner("a", Options{Routing: Auto, VNI: 1, Port: 4789, Services: cidrs("10.96.0.0/16")})
	u := testUnderlay()
	for _, m := range []Member{
		nodeA, nodeB, nodeC,
		{Name: "lost", Addrs: addrs("10.0.0.5"), PodCIDRs: cidrs("10.244.5.0/24")},
		{Name: "nowhere", Addrs: addrs("fd00::6"), PodCIDRs: cidrs("10.244.6.0/24")},
		{Name: "none", Addrs: addrs("10.0.0.7")},
		{Name: "twice", Addrs: addrs("10.0.0.8"), PodCIDRs: cidrs("10.244.2.0/24")},
		{Name: "tunnelled-twice", Addrs: addrs("10.9.0.8"), PodCIDRs: cidrs("10.244.3.0/24")},
		{Name: "virtual", Addrs: addrs("10.0.0.9"), PodCIDRs: cidrs("10.96.9.0/24")},
	} {
		p.Set(m, u)
	}
	has := func(r Route) bool { return r.Dst != cidrs("10.244.5.0/24")[0] }
	var got strings.Builder
	for _, peer := range p.Peers(u, has) {
		fmt.Fprintf(&got, "%s %s %s", peer.Node, peer.PodCIDR, peer.Kind)
		if peer.Device != "" {
			fmt.Fprintf(&got, " by %s", peer.Device)
		}
		if peer.Why != "" {
			fmt.Fprintf(&got, ": %s", peer.Why)
		}
		got.WriteString("\n")
	}
	want := `b 10.244.2.0/24 direct by eth0
b fd00:244:2::/64 direct by eth0
c 10.244.3.0/24 vxlan by fairlead-vx4
c fd00:244:3::/64 vxlan by fairlead-vx6
lost 10.244.5.0/24 missing: the kernel does not have the route
none invalid Prefix missing: it has no pod CIDR: no pods can run on it
nowhere 10.244.6.0/24 missing: it has no IPv4 address: its pods 10.244.6.0/24 are not reached
tunnelled-twice 10.244.3.0/24 missing: its pod CIDR 10.244.3.0/24 overlaps 10.244.3.0/24 of node c: it is not reached
twice 10.244.2.0/24 missing: its pod CIDR 10.244.2.0/24 overlaps 10.244.2.0/24 of node b: it is not reached
virtual 10.96.9.0/24 missing: its pod CIDR 10.96.9.0/24 overlaps 10.96.0.0/16, in which Services are: it is not reached
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
