package storm

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// checkRows compares the store with the pods that live, address by address.
func (n *node) checkRows(t *testing.T) {
	t.Helper()
	store, err := disk.New(n.dataDir, network)
	if err != nil {
		t.Fatal(err)
	}
	boot, err := disk.BootID()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]netip.Addr{}
	err = store.View(t.Context(), func(tx ipam.Tx) error {
		faults, err := ipam.Verify(tx, boot)
		if err != nil {
			return err
		}
		for _, fault := range faults {
			t.Errorf("store: %s", fault)
		}
		leases, err := ipam.Leases(tx, boot)
		for _, lease := range leases {
			got[lease.ContainerID] = lease.Addrs
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]netip.Addr{}
	for id, p := range n.live {
		want[id] = p.addresses()
	}
	n.compare(t, "rows", want, got)
}

// checkPorts compares the ports of the bridge with the pods that live.
func (n *node) checkPorts(t *testing.T) {
	t.Helper()
	var want []string
	for _, p := range n.live {
		want = append(want, p.result.Interfaces[1].Name)
	}
	slices.Sort(want)
	n.compare(t, "veths", want, n.links(t, "veth"))
}

// checkLinks looks for links of whatever kind when no pod lives.
func (n *node) checkLinks(t *testing.T) {
	t.Helper()
	n.compare(t, "links", []string{bridge, "lo"}, n.links(t, ""))
}

// links are the names of the node's links of a kind, all if it is "".
func (n *node) links(t *testing.T, kind string) []string {
	t.Helper()
	handle, err := netlink.NewHandleAt(n.ns.Handle(), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	found, err := handle.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range found {
		if kind == "" || l.Type() == kind {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names
}

// checkPods calls CHECK for the pods that live: none may have lost anything to
// what happened around it.
func (n *node) checkPods(t *testing.T) {
	t.Helper()
	for id, p := range n.live {
		conf := n.network()
		conf["prevResult"] = p.result
		if _, err := n.call("CHECK", p, order{}, conf); err != nil {
			t.Errorf("CHECK of %s: %v", id, err)
		}
	}
}

// emptyRules are the node's when a pod has come and gone.
func (n *node) emptyRules(t *testing.T) []string {
	t.Helper()
	none := n.rules(t)
	p := n.newPod()
	n.add(p, order{})
	with := n.rules(t)
	n.del(p, order{})
	empty := n.rules(t)
	if len(none) >= len(empty) || len(empty) >= len(with) {
		t.Fatalf("the plugin has no rules for a pod: before %q, with it %q, after %q", none, with, empty)
	}
	n.removeBridge(t)
	return empty
}

// rules are the node's nftables: how many rules each chain has, and what is in
// the sets and maps.
func (n *node) rules(t *testing.T) []string {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(int(n.ns.Handle())))
	if err != nil {
		t.Fatal(err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, c := range chains {
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, fmt.Sprintf("table %s chain %s: %d rules", c.Table.Name, c.Name, len(rules)))
	}
	tables, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		found = append(found, elements(t, conn, table)...)
	}
	slices.Sort(found)
	return found
}

func elements(t *testing.T, conn *nftables.Conn, table *nftables.Table) []string {
	t.Helper()
	sets, err := conn.GetSets(table)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, set := range sets {
		elements, err := conn.GetSetElements(set)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range elements {
			found = append(found, fmt.Sprintf("table %s set %s: %x", table.Name, set.Name, e.Key))
		}
	}
	return found
}

// removeBridge has the next round make the bridge.
func (n *node) removeBridge(t *testing.T) {
	t.Helper()
	n.ns.RunT(t, "ip", "link", "delete", bridge)
}

func (n *node) compare(t *testing.T, what string, want, got any) {
	t.Helper()
	equal := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
