package metrics

import "github.com/prometheus/client_golang/prometheus"

// outcomes tells how sockets and packets fared, as programs in the kernel count it.
type outcomes struct {
	read func(tell func(path, outcome string, n uint64)) error
}

var outcomesDesc = prometheus.NewDesc("fairlead_outcomes_total",
	"How sockets that connect (or send a datagram) and packets fared, by path (socket, packet) and outcome.",
	[]string{"path", "outcome"}, nil)

// CountOutcomes adds what read says to what is told: it calls tell for each outcome of
// each path.
func (m *Metrics) CountOutcomes(read func(tell func(path, outcome string, n uint64)) error) {
	m.registry.MustRegister(outcomes{read})
}

// Describe implements prometheus.Collector.
func (o outcomes) Describe(out chan<- *prometheus.Desc) { out <- outcomesDesc }

// Collect implements prometheus.Collector.
func (o outcomes) Collect(out chan<- prometheus.Metric) {
	_ = o.read(func(path, outcome string, n uint64) { // what cannot be read is not told
		out <- prometheus.MustNewConstMetric(outcomesDesc, prometheus.CounterValue, float64(n), path, outcome)
	})
}
