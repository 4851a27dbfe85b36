// Package metrics counts what 'fairlead node' does, for Prometheus. It is told by
// the loop of that command, but for the addresses, which it asks for when somebody
// wants to know.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics is safe for concurrent use.
type Metrics struct {
	registry *prometheus.Registry

	nodes, tunnels     prometheus.Gauge
	wanted, programmed prometheus.Gauge
	problems           *prometheus.GaugeVec
	errors             *prometheus.CounterVec
	latency            prometheus.Histogram
	lastSynced         prometheus.Gauge
	repairs            *prometheus.CounterVec
	swept              prometheus.Counter
}

// New returns the metrics of a node's process of that version.
func New(version string) *Metrics {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := &Metrics{
		registry:   r,
		nodes:      gauge("nodes", "Nodes of the cluster, this one too."),
		tunnels:    gauge("tunnels", "VXLAN devices that are wanted."),
		wanted:     gauge("routes_wanted", "Routes to other nodes' pods and, for pods, to nodes behind tunnels, that are wanted."),
		programmed: gauge("routes_programmed", "Routes of Fairlead's that the kernel has."),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: prefix + "problems", Help: "Things that are wrong now and keep pods from being reached, by kind.",
		}, []string{"kind"}),
		errors: counters("errors_total", "Attempts at something that failed, each made again until it does not, by what it was.", "what"),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    prefix + "change_duration_seconds",
			Help:    "Time from the word of a change, of the cluster or of the kernel, until the kernel agreed with it.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16), // 0.5 ms to 16 s
		}),
		lastSynced: gauge("last_sync_timestamp_seconds", "When the kernel last agreed with all that is known."),
		repairs:    counters("repairs_total", "Times that somebody else had changed what is Fairlead's, and it was put right, by what it was.", "what"),
		swept: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "swept_total", Help: "Interfaces of pods that ended without a word, whose addresses were given back.",
		}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "fairlead_build_info", Help: "1, with the version and the mode as labels.",
		ConstLabels: prometheus.Labels{"version": version, "mode": "node"},
	})
	info.Set(1)
	r.MustRegister(m.nodes, m.tunnels, m.wanted, m.programmed, m.problems, m.errors, m.latency, m.lastSynced, m.repairs, m.swept, info)
	return m
}

const prefix = "fairlead_node_"

func gauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + name, Help: help})
}

func counters(name, help, label string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, []string{label})
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Counts are how many there are of what is wanted and what the kernel has.
type Counts struct {
	Nodes, Tunnels, Wanted, Programmed int
}

// Tried tells what there is after an attempt to have the kernel agree.
func (m *Metrics) Tried(c Counts) {
	m.nodes.Set(float64(c.Nodes))
	m.tunnels.Set(float64(c.Tunnels))
	m.wanted.Set(float64(c.Wanted))
	m.programmed.Set(float64(c.Programmed))
}

// Problems tells how many there are now of each kind.
func (m *Metrics) Problems(kinds map[string]int) {
	m.problems.Reset()
	for kind, n := range kinds {
		m.problems.WithLabelValues(kind).Set(float64(n))
	}
}

// Agreed tells that the kernel agrees, so long after the word of the change.
func (m *Metrics) Agreed(after time.Duration) {
	m.latency.Observe(after.Seconds())
	m.lastSynced.Set(float64(time.Now().UnixNano()) / 1e9)
}

// Failed counts an error of what was tried.
func (m *Metrics) Failed(what string) { m.errors.WithLabelValues(what).Inc() }

// Repaired counts damage by others that was put right.
func (m *Metrics) Repaired(what string) { m.repairs.WithLabelValues(what).Inc() }

// Swept counts pods' interfaces that were swept.
func (m *Metrics) Swept(n int) { m.swept.Add(float64(n)) }
