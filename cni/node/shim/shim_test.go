package shim

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Cleanup leaves what there was before, and nothing to do for a second one; what
// others have stays.
func TestCleanup(t *testing.T) {
	ns := netns.NewT(t)
	ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip link add eth0 type bridge
		ip link set dev eth0 addrgenmode none # an address more would come when it likes
		ip addr add 192.168.10.1/24 dev eth0
		ip addr add fd00:10::1/64 dev eth0 nodad
		ip link set eth0 up
		nft add table ip others`)
	left := func() string {
		return ns.RunT(t, "sh", "-ec", "ip -br link; ip route show table all; ip -6 route show table all proto 251; ip rule; nft list tables")
	}
	before := left()
	w := Wanted{
		Master: "eth0",
		Addrs:  []netip.Addr{netip.MustParseAddr("192.168.10.1"), netip.MustParseAddr("fd00:10::1")},
		Blocks: []netip.Prefix{netip.MustParsePrefix("192.168.10.64/28"), netip.MustParsePrefix("fd00:10::40/122")},
		Own:    []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		// By mistake one is in another.
		Others: []netip.Prefix{netip.MustParsePrefix("10.244.2.128/25"), netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("10.244.2.0/24")},
	}
	err := ns.Do(func() error {
		k, err := Open()
		if err != nil {
			return err
		}
		defer k.Close()
		return k.Sync(w)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{Name + "@eth0", "192.168.10.64/28 dev " + Name, "fd00:10::40/122 dev " + Name, "table ip6 " + Name} {
		if got := left(); !strings.Contains(got, want) {
			t.Errorf("no %s in:\n%s", want, got)
		}
	}
	if err := ns.Do(func() error { return errors.Join(Cleanup(), Cleanup()) }); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, left()); diff != "" {
		t.Errorf("left over (-before +after):\n%s", diff)
	}
}
