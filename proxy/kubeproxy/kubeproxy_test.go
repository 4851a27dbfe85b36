package kubeproxy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
)

// theirsAndOthers is as iptables-restore takes it: a Service of kube-proxy's, and
// what kubelet, a network policy and somebody else have beside it.
const theirsAndOthers = `*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-ROUTER-SNAT - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j MINE
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -j KUBE-ROUTER-SNAT
-A KUBE-SERVICES -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A -j KUBE-SEP-A
-A KUBE-SEP-A -j KUBE-MARK-MASQ
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A MINE -m comment --comment "-j KUBE-SERVICES" -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
`

// othersOnly is what is to be there after that.
const othersOnly = `*nat
:KUBE-KUBELET-CANARY
:KUBE-ROUTER-SNAT
:MINE
-A PREROUTING -j MINE
-A POSTROUTING -j KUBE-ROUTER-SNAT
-A MINE -m comment --comment "-j KUBE-SERVICES" -j RETURN
*filter
:KUBE-FIREWALL
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
`

// Of either variant and family, and of nftables, what is kube-proxy's goes and what
// is not stays.
func TestRemove(t *testing.T) {
	ns := netns.NewT(t)
	programs := []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"}
	must := func(f func() error) {
		t.Helper()
		if err := ns.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	must(func() error {
		for _, program := range programs {
			if _, err := run(t.Context(), []byte(theirsAndOthers), program+"-restore", "--noflush"); err != nil {
				return err
			}
		}
		return nil
	})
	for _, family := range []string{"ip", "ip6"} {
		ns.RunT(t, "nft", "add", "table", family, "kube-proxy")
	}
	ns.RunT(t, "nft", "add", "table", "inet", "kube-proxy") // not kube-proxy's
	var got []string
	must(func() error {
		found, err := Find(t.Context())
		for _, l := range found {
			got = append(got, l.What)
			if err == nil {
				err = l.Remove(t.Context())
			}
		}
		return err
	})
	want := []string{
		"6 chains in iptables-nft", "6 chains in ip6tables-nft", "6 chains in iptables-legacy", "6 chains in ip6tables-legacy",
		"nftables table ip kube-proxy", "nftables table ip6 kube-proxy",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what was found (-want +got):\n%s", diff)
	}
	for _, program := range programs {
		if diff := cmp.Diff(tables(othersOnly), tables(ns.RunT(t, program+"-save"))); diff != "" {
			t.Errorf("%s after that (-want +got):\n%s", program, diff)
		}
	}
	if got := ns.RunT(t, "nft", "list", "tables"); !strings.Contains(got, "table inet kube-proxy") {
		t.Errorf("a table of another family is gone: %s", got)
	}
	must(func() error {
		found, err := Find(t.Context())
		if len(found) > 0 {
			t.Errorf("found again: %v", found)
		}
		return err
	})
}

// tables is table → its rules and chains, of those that are not built in.
func tables(saved string) map[string][]string {
	all := map[string][]string{}
	table := ""
	for line := range strings.Lines(saved) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line
		case strings.HasPrefix(line, "-A"):
			all[table] = append(all[table], line)
		case strings.HasPrefix(line, ":") && !strings.Contains(line, " ACCEPT ["):
			name, _, _ := strings.Cut(line, " ")
			all[table] = append(all[table], name)
		}
	}
	return all
}
