// Package metrics counts what the proxy does, for Prometheus: under kube-proxy's
// names where there is one, so that dashboards go on, and as fairlead_… else. It
// is told by the loop of package proxy.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/watch"
)

// Metrics is an Observer of the proxy's loop. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	syncDuration  prometheus.Histogram
	lastSynced    prometheus.Gauge
	lastQueued    prometheus.Gauge
	failures      prometheus.Counter
	serviceEvents prometheus.Counter
	sliceEvents   prometheus.Counter

	frontends, pools    prometheus.Gauge
	conflicts, problems prometheus.Gauge
	quarantined         prometheus.Gauge
}

// New returns the metrics of a proxy of that version in that mode.
func New(version, mode string) *Metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := &Metrics{registry: r}
	m.syncDuration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name:    "kubeproxy_sync_proxy_rules_duration_seconds",
		Help:    "Time that the kernel took to be told of a change.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 15), // 1 ms to 16 s, as kube-proxy's
	})
	m.lastSynced = gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the kernel was last told of a change.")
	m.lastQueued = gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a change last came in.")
	m.failures = counter("fairlead_sync_failures_total", "Changes that the kernel did not take, each tried again until it did.")
	m.serviceEvents = counter("kubeproxy_sync_proxy_rules_service_changes_total", "Services that came, changed or went.")
	m.sliceEvents = counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "EndpointSlices that came, changed or went.")
	m.frontends = gauge("fairlead_frontends", "Destinations that are Services'.")
	m.pools = gauge("fairlead_pools", "Sets of backends that take turns.")
	m.conflicts = gauge("fairlead_conflicts", "Destinations that a Service claims in vain because an older one has them.")
	m.quarantined = gauge("fairlead_quarantined", "Services that the kernel does not take, which are not served.")
	m.problems = gauge("fairlead_problems", "Things that are wrong with objects, which are left out.")
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "fairlead_build_info", Help: "1, with the version and the mode as labels.",
		ConstLabels: prometheus.Labels{"version": version, "mode": mode},
	})
	info.Set(1)
	r.MustRegister(m.syncDuration, m.lastSynced, m.lastQueued, m.failures, m.serviceEvents, m.sliceEvents,
		m.frontends, m.pools, m.conflicts, m.quarantined, m.problems, info)
	return m
}

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// News implements proxy.Observer.
func (m *Metrics) News(news watch.News) {
	if !news.Update.Empty() {
		m.lastQueued.Set(seconds(time.Now()))
	}
	m.serviceEvents.Add(float64(len(news.Update.Services)))
	m.sliceEvents.Add(float64(len(news.Update.Slices)))
	m.problems.Add(float64(wrong(news.Problems) - wrong(news.Mended)))
}

// wrong counts the problems that are more than a note.
func wrong(problems []watch.Problem) int {
	n := 0
	for _, p := range problems {
		if !p.Note {
			n++
		}
	}
	return n
}

// Synced implements proxy.Observer.
func (m *Metrics) Synced(r proxy.Round) {
	m.syncDuration.Observe(r.Took.Seconds())
	if r.Err != nil {
		m.failures.Inc()
		return
	}
	m.lastSynced.Set(seconds(time.Now()))
	m.frontends.Set(float64(len(r.Table.Frontends)))
	m.pools.Set(float64(len(r.Table.Pools)))
}

// UpToDate implements proxy.Observer.
func (m *Metrics) UpToDate(left proxy.LeftOut) {
	m.conflicts.Set(float64(left.Conflicts))
	m.quarantined.Set(float64(left.Quarantined))
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }
