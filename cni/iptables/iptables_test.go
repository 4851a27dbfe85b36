package iptables

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/e2e/netns"
)

// TestStopFindsItsRules has owners whose names iptables prints in different ways:
// the specification allows every character but slash, colon and space in the name
// of an interface.
func TestStopFindsItsRules(t *testing.T) {
	for _, ifName := range []string{"eth0", `e"0`, `e\0`, `e\"`, "e'0", "eth0.5", "é0", "e\u200b0"} {
		t.Run(ifName, func(t *testing.T) {
			ns := netns.NewT(t)
			owner := mode.Owner{Network: "net", ContainerID: "pod", IfName: ifName}
			other := mode.Owner{Network: "net", ContainerID: "other", IfName: ifName}
			err := ns.Do(func() error {
				for addr, o := range map[string]mode.Owner{"10.9.0.2": owner, "10.9.0.3": other} {
					if _, err := Masquerade(o, []netip.Addr{netip.MustParseAddr(addr)}, nil); err != nil {
						return err
					}
				}
				return Stop(owner)
			})
			if err != nil {
				t.Fatal(err)
			}
			rules := ns.RunT(t, "iptables", "-t", "nat", "-S")
			if strings.Contains(rules, "10.9.0.2") || !strings.Contains(rules, "10.9.0.3") {
				t.Errorf("after Stop:\n%s", rules)
			}
		})
	}
}
