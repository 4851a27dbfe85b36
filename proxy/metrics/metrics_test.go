package metrics

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// scrape returns the samples of the proxy's own metrics, without those of time.
func scrape(t *testing.T, m *Metrics) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	var out []string
	for line := range strings.Lines(w.Body.String()) {
		line = strings.TrimSpace(line)
		ours := strings.HasPrefix(line, "kubeproxy_") || strings.HasPrefix(line, "fairlead_")
		if ours && !strings.Contains(line, "timestamp") && !strings.Contains(line, "_bucket{") && !strings.Contains(line, "_sum") {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

func TestMetrics(t *testing.T) {
	name := service.Name{Namespace: "default", Name: "web"}
	m := New("v1", "iptables")
	bad := watch.Problem{Message: "bad"}
	now := time.Now()
	slice := func(addr string, triggered time.Time) *service.Slice {
		return &service.Slice{Triggered: triggered, Endpoints: []service.Endpoint{{Addr: netip.MustParseAddr(addr)}}}
	}
	m.News(watch.News{
		Update: service.Update{
			Services: map[service.Name]*service.Service{name: {}},
			Slices: map[service.Name]*service.Slice{
				name:        nil,
				{Name: "x"}: slice("10.0.0.1", now),
				{Name: "y"}: slice("fd00::1", now),
				{Name: "z"}: slice("fd00::1", now.Add(-time.Hour)), // before the proxy began
			},
		},
		Problems: []watch.Problem{bad, bad, {Note: true}},
		Since:    now,
	})
	table := &service.Table{
		Frontends: map[service.Key]service.Frontend{
			{Addr: service.AnyNodeAddr(false), Port: 1}: {Paths: service.Paths{service.FromOutside: {Verdict: service.Drop}}},
			{Addr: service.AnyNodeAddr(true), Port: 2}:  {Paths: service.Paths{{Verdict: service.Drop}, {Verdict: service.Drop}, {Verdict: service.Drop}}},
		},
		Pools: map[service.PoolID]service.Pool{{}: {}},
	}
	m.Synced(proxy.Round{Table: table, Err: errors.New("no"), Took: time.Millisecond})
	m.Synced(proxy.Round{Table: table, Repair: true, Took: time.Millisecond, Change: service.Change{
		Frontends: []service.Key{{Addr: service.AnyNodeAddr(true), Port: 2}},
		Pools:     []service.PoolID{{IPv6: true}},
	}})
	pending := []string{
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending 4",
		"kubeproxy_sync_proxy_rules_service_changes_pending 1",
	}
	if got := scrape(t, m); !slices.Contains(got, pending[0]) || !slices.Contains(got, pending[1]) {
		t.Errorf("pending: %v", got)
	}
	m.News(watch.News{Mended: []watch.Problem{bad}})
	m.UpToDate(proxy.LeftOut{Conflicts: 3, Quarantined: 2})
	m.UpToDate(proxy.LeftOut{Conflicts: 3, Quarantined: 2})
	m.Asked("/healthz", 503)
	m.Asked("/livez", 200)
	want := []string{
		`fairlead_build_info{mode="iptables",version="v1"} 1`,
		"fairlead_conflicts 3",
		"fairlead_frontends 2",
		"fairlead_pools 1",
		"fairlead_problems 1",
		"fairlead_programming_duration_seconds_count 1",
		"fairlead_quarantined 2",
		"fairlead_repairs_total 1",
		"fairlead_sync_failures_total 1",
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv6"} 1`,
		`kubeproxy_proxy_healthz_total{code="503"} 1`,
		`kubeproxy_proxy_livez_total{code="200"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} 2`,
		"kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
		"kubeproxy_sync_proxy_rules_endpoint_changes_total 4",
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="internal"} 1`,
		"kubeproxy_sync_proxy_rules_service_changes_pending 0",
		"kubeproxy_sync_proxy_rules_service_changes_total 1",
	}
	if diff := cmp.Diff(want, scrape(t, m)); diff != "" {
		t.Error(diff)
	}
}
