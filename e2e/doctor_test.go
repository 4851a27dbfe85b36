package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

// finding is what 'fairlead doctor -o json' says of one thing.
type finding struct{ Check, State, What, Why, Mend string }

// doctor looks at a node, and returns what a check says.
func doctor(t *testing.T, n *lab.Node, check string) []finding {
	t.Helper()
	o := ask(t, n, "doctor", "-o", "json")
	var all []finding
	if err := json.Unmarshal([]byte(o.stdout), &all); err != nil {
		t.Fatalf("doctor: %v, %+v", err, o)
	}
	bad := slices.ContainsFunc(all, func(f finding) bool { return f.State == "bad" })
	if bad != (o.code == 1) || o.code > 1 {
		t.Errorf("code %d for %+v", o.code, all)
	}
	return slices.DeleteFunc(all, func(f finding) bool { return f.Check != check })
}

func isWell(found []finding) bool { return len(found) == 1 && found[0].State == "ok" }

// What is broken on a node is found, with why it matters and how to mend it; and where
// that is a command, it does.
func TestDoctorFindsAndMends(t *testing.T) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) { findAndMend(t, variant) })
	}
}

func findAndMend(t *testing.T, variant string) {
	iptables, ip6tables := "iptables-"+variant, "ip6tables-"+variant
	l := labtest.New(t, options(t, 2, iptables))
	n := l.Nodes[0]
	labtest.AddPod(t, l, n, "pod")
	for _, tt := range []struct {
		name, do, check, state, says string
		undo                         string // "": the command that is told mends it
	}{
		{"forwarding", "sysctl -qw net.ipv4.ip_forward=0", "forwarding", "bad", "net/ipv4/ip_forward is 0", ""},
		{"forwarding, IPv6", "sysctl -qw net.ipv6.conf.all.forwarding=0", "forwarding", "bad", "net/ipv6/conf/all/forwarding is 0", ""},
		{"strict filter", "sysctl -qw net.ipv4.conf.all.rp_filter=1", "reverse path filter", "warning", "rp_filter is strict (1) on", ""},
		{"bridges are not seen", "sysctl -qw net.bridge.bridge-nf-call-iptables=0", "bridge netfilter", "bad", "bridge-nf-call-iptables is 0", ""},
		{"drop policy", iptables + " -P FORWARD DROP", "forward policy", "warning", "chain FORWARD of " + iptables + " drops", ""},
		{"drop policy, IPv6", ip6tables + " -P FORWARD DROP", "forward policy", "warning", "chain FORWARD of " + ip6tables + " drops", ""},
		{"drop policy of nftables", "nft 'add table inet wall; add chain inet wall through { type filter hook forward priority 0; policy drop; }'",
			"forward policy", "warning", "chain through of nftables table inet wall drops", "nft delete table inet wall"},
		{"MTU", "ip link set cni0 mtu 1600", "MTU", "warning", "MTU 1600 of cni0, but 1500 of the narrowest way", "ip link set cni0 mtu 1500"},
		{"kube-proxy was here", iptables + " -t nat -N KUBE-SERVICES", "other proxies", "bad", "1 chains of kube-proxy (" + iptables, iptables + " -t nat -X KUBE-SERVICES"},
	} {
		if variant == "legacy" && !strings.Contains(tt.do, iptables) && !strings.Contains(tt.do, ip6tables) {
			continue // it is the same with either
		}
		t.Run(tt.name, func(t *testing.T) {
			if found := doctor(t, n, tt.check); !isWell(found) {
				t.Fatalf("before: %+v", found)
			}
			n.NS().RunT(t, "sh", "-ec", tt.do)
			found := doctor(t, n, tt.check)
			if len(found) != 1 || found[0].State != tt.state || !strings.Contains(found[0].What, tt.says) || found[0].Why == "" {
				t.Fatalf("found %+v, want %s", found, tt.says)
			}
			command := tt.undo
			if command == "" {
				command, _, _ = strings.Cut(found[0].Mend, " (")
				command, _, _ = strings.Cut(command, ", or ")
			}
			n.NS().RunT(t, "sh", "-ec", command)
			if found := doctor(t, n, tt.check); !isWell(found) {
				t.Errorf("after %s: %+v", command, found)
			}
		})
	}
	t.Run("ranges that clash", func(t *testing.T) {
		other := &corev1.Node{}
		other.Kind, other.APIVersion, other.Name = "Node", "v1", "other"
		other.Spec.PodCIDRs = l.NodeObjects()[1].Spec.PodCIDRs[:1]
		other.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.244.77"}}
		if err := l.Apply(other); err != nil {
			t.Fatal(err)
		}
		var found []finding
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && (len(found) == 0 || isWell(found)); {
			found = doctor(t, n, "address ranges")
		}
		if len(found) == 0 || found[0].State != "bad" || !strings.Contains(found[0].What, "its pod CIDR "+other.Spec.PodCIDRs[0]+" overlaps") || found[0].Mend == "" {
			t.Errorf("found %+v", found)
		}
	})
}
