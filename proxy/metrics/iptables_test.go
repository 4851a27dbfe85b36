package metrics

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/iptables"
)

func TestIPTables(t *testing.T) {
	m := New("v1", "iptables")
	before := scrape(t, m)
	i := m.IPTables(func() (iptables.Packets, error) {
		return iptables.Packets{InvalidDropped: 7, LocalhostAccepted: 8}, nil
	})
	rules := map[string]int{"nat": 20, "filter": 5}
	i.Round(iptables.Round{Full: true, Took: time.Second, Rules: rules, Written: rules, Flows: time.Millisecond, StaleFlows: 3})
	i.Round(iptables.Round{Took: time.Second, Rules: rules, Written: map[string]int{"nat": 2}})
	i.Round(iptables.Round{IPv6: true, Failed: true})
	i.Round(iptables.Round{IPv6: true, Failed: true, Hung: true, Full: true})
	got := slices.DeleteFunc(scrape(t, m), func(line string) bool { return slices.Contains(before, line) })
	want := strings.Split(strings.TrimSpace(`
fairlead_iptables_hung_total{ip_family="IPv6"} 1
kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 3
kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"} 1
kubeproxy_iptables_ct_state_invalid_dropped_packets_total 7
kubeproxy_iptables_localhost_nodeports_accepted_packets_total 8
kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1
kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1
kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="filter"} 0
kubeproxy_sync_proxy_rules_iptables_last{ip_family="IPv4",table="nat"} 2
kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total{ip_family="IPv6"} 1
kubeproxy_sync_proxy_rules_iptables_restore_failures_total{ip_family="IPv6"} 2
kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="filter"} 5
kubeproxy_sync_proxy_rules_iptables_total{ip_family="IPv4",table="nat"} 20
`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
