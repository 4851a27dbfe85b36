// Package metrics counts what the proxy does, for Prometheus: under kube-proxy's
// names and with its labels where there is one, so that dashboards go on, and as
// fairlead_… else. It is told by the loop of package proxy.
package metrics

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// Metrics is an Observer of the proxy's loop. It is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry
	began    time.Time

	syncDuration  *prometheus.HistogramVec // by family, as are the next two
	lastSynced    *prometheus.GaugeVec
	lastQueued    *prometheus.GaugeVec
	noLocal       *prometheus.GaugeVec // by policy too
	network       *prometheus.HistogramVec
	programming   prometheus.Histogram
	failures      prometheus.Counter
	repairs       prometheus.Counter
	serviceEvents prometheus.Counter
	sliceEvents   prometheus.Counter
	pending       [2]prometheus.Gauge      // changes of Services, of slices
	probes        []*prometheus.CounterVec // of healthz, of livez

	frontends, pools    prometheus.Gauge
	conflicts, problems prometheus.Gauge
	quarantined         prometheus.Gauge

	mu    sync.Mutex
	since time.Time // of the oldest news that the kernel does not have; zero: none
	// triggered is when what happened that the kernel does not have, by family.
	triggered map[string][]time.Time
}

// Families, as kube-proxy's labels have them.
const (
	ipv4 = "IPv4"
	ipv6 = "IPv6"
)

func familyOf(is6 bool) string {
	if is6 {
		return ipv6
	}
	return ipv4
}

// New returns the metrics of a proxy of that version in that mode.
func New(version, mode string) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), began: time.Now(), triggered: map[string][]time.Time{}}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.registerKubeProxys()
	m.registerOurs(version, mode)
	return m
}

func (m *Metrics) registerKubeProxys() {
	// From a quarter of a second to five minutes, as kube-proxy's.
	long := slices.Concat(prometheus.LinearBuckets(0.25, 0.25, 2), prometheus.LinearBuckets(1, 1, 59),
		prometheus.LinearBuckets(60, 5, 12), prometheus.LinearBuckets(120, 30, 7))
	m.syncDuration = m.histograms("kubeproxy_sync_proxy_rules_duration_seconds", "Time that the kernel took to be told of a change.", short())
	m.network = m.histograms("kubeproxy_network_programming_duration_seconds", "Time from what happened to a Service or pod, as the cluster's controllers have it, until the kernel knew.", long)
	m.lastSynced = m.gauges("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the kernel was last told of a change.", "ip_family")
	m.lastQueued = m.gauges("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a change last came in.", "ip_family")
	m.noLocal = m.gauges("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports whose flows are dropped, because a traffic policy is Local and no endpoint is on this node.", "traffic_policy", "ip_family")
	m.serviceEvents = m.counter("kubeproxy_sync_proxy_rules_service_changes_total", "Services that came, changed or went.")
	m.sliceEvents = m.counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "EndpointSlices that came, changed or went.")
	m.pending[0] = m.gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Those that the kernel does not know of.")
	m.pending[1] = m.gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Those that the kernel does not know of.")
	for _, probe := range []string{"healthz", "livez"} {
		m.probes = append(m.probes, m.counters("kubeproxy_proxy_"+probe+"_total", "Answers to /"+probe+", by code.", "code"))
	}
}

func (m *Metrics) registerOurs(version, mode string) {
	m.programming = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "fairlead_programming_duration_seconds", Help: "Time from when a change was heard of until the kernel knew.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 17),
	})
	m.registry.MustRegister(m.programming)
	m.failures = m.counter("fairlead_sync_failures_total", "Changes that the kernel did not take, each tried again until it did.")
	m.repairs = m.counter("fairlead_repairs_total", "Times that others had damaged what the kernel was told, and it was told anew.")
	m.frontends = m.gauge("fairlead_frontends", "Destinations that are Services'.")
	m.pools = m.gauge("fairlead_pools", "Sets of backends that take turns.")
	m.conflicts = m.gauge("fairlead_conflicts", "Destinations that a Service claims in vain because an older one has them.")
	m.quarantined = m.gauge("fairlead_quarantined", "Services that the kernel does not take, which are not served.")
	m.problems = m.gauge("fairlead_problems", "Things that are wrong with objects, which are left out.")
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "fairlead_build_info", Help: "1, with the version and the mode as labels.",
		ConstLabels: prometheus.Labels{"version": version, "mode": mode},
	})
	info.Set(1)
	m.registry.MustRegister(info)
}

func (m *Metrics) histograms(name, help string, buckets []float64) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{"ip_family"})
	m.registry.MustRegister(h)
	return h
}

// short is 1 ms to 16 s, as kube-proxy's buckets are.
func short() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 15) }

func (m *Metrics) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(g)
	return g
}

func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	m.registry.MustRegister(g)
	return g
}

func (m *Metrics) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	m.registry.MustRegister(c)
	return c
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Asked counts the answers to probes.
func (m *Metrics) Asked(probe string, code int) {
	i := slices.Index([]string{"/healthz", "/livez"}, probe)
	m.probes[i].WithLabelValues(strconv.Itoa(code)).Inc()
}

// News implements proxy.Observer.
func (m *Metrics) News(news watch.News) {
	services, sliceCount := float64(len(news.Update.Services)), float64(len(news.Update.Slices))
	m.serviceEvents.Add(services)
	m.sliceEvents.Add(sliceCount)
	m.problems.Add(float64(wrong(news.Problems) - wrong(news.Mended)))
	if news.Update.Empty() {
		return
	}
	m.pending[0].Add(services)
	m.pending[1].Add(sliceCount)
	m.lastQueued.WithLabelValues(ipv4).SetToCurrentTime()
	m.lastQueued.WithLabelValues(ipv6).SetToCurrentTime()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since.IsZero() {
		if m.since = news.Since; m.since.IsZero() {
			m.since = time.Now()
		}
	}
	for _, slice := range news.Update.Slices {
		m.noteTriggered(slice)
	}
}

// noteTriggered remembers when what led to a slice happened. What did before the
// proxy began was not its to program.
func (m *Metrics) noteTriggered(slice *service.Slice) {
	if slice == nil || len(slice.Endpoints) == 0 || slice.Triggered.Before(m.began) {
		return
	}
	family := familyOf(slice.Endpoints[0].Addr.Is6())
	m.triggered[family] = append(m.triggered[family], slice.Triggered)
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
	for _, family := range familiesOf(r.Change) {
		m.syncDuration.WithLabelValues(family).Observe(r.Took.Seconds())
		if r.Err == nil {
			m.lastSynced.WithLabelValues(family).SetToCurrentTime()
		}
	}
	if r.Err != nil {
		m.failures.Inc()
		return
	}
	if r.Repair {
		m.repairs.Inc()
	}
	m.frontends.Set(float64(len(r.Table.Frontends)))
	m.pools.Set(float64(len(r.Table.Pools)))
	if len(r.Change.Frontends) > 0 {
		m.countNoLocal(r.Table)
	}
}

// countNoLocal counts Service ports whose flows are dropped for want of an endpoint on
// this node: those of pods, if it is the internal policy, or of outsiders alone.
func (m *Metrics) countNoLocal(t *service.Table) {
	type which struct{ policy, family string }
	found := map[which]map[service.Origin]bool{}
	for _, is6 := range []bool{false, true} {
		found[which{"internal", familyOf(is6)}] = map[service.Origin]bool{}
		found[which{"external", familyOf(is6)}] = map[service.Origin]bool{}
	}
	for key, f := range t.Frontends {
		switch service.Drop {
		case f.Paths[service.FromPod].Verdict:
			found[which{"internal", familyOf(key.Addr.Is6())}][f.Origin] = true
		case f.Paths[service.FromOutside].Verdict:
			found[which{"external", familyOf(key.Addr.Is6())}][f.Origin] = true
		}
	}
	for w, origins := range found {
		m.noLocal.WithLabelValues(w.policy, w.family).Set(float64(len(origins)))
	}
}

// familiesOf are those that a round was about: both, if it was about everything.
func familiesOf(c service.Change) []string {
	has := func(is6 bool) bool {
		return slices.ContainsFunc(c.Frontends, func(k service.Key) bool { return k.Addr.Is6() == is6 }) ||
			slices.ContainsFunc(c.Pools, func(id service.PoolID) bool { return id.IPv6 == is6 })
	}
	switch has4, has6 := has(false), has(true); {
	case c.Node || has4 == has6:
		return []string{ipv4, ipv6}
	case has4:
		return []string{ipv4}
	}
	return []string{ipv6}
}

// UpToDate implements proxy.Observer.
func (m *Metrics) UpToDate(left proxy.LeftOut) {
	m.conflicts.Set(float64(left.Conflicts))
	m.quarantined.Set(float64(left.Quarantined))
	m.pending[0].Set(0)
	m.pending[1].Set(0)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.since.IsZero() {
		m.programming.Observe(time.Since(m.since).Seconds())
		m.since = time.Time{}
	}
	for family, times := range m.triggered {
		for _, at := range times {
			m.network.WithLabelValues(family).Observe(time.Since(at).Seconds())
		}
	}
	clear(m.triggered)
}
