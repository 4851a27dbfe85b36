package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/proxy/conntrack"
)

// tracking tells how full the kernel's connection tracking is.
type tracking func() (conntrack.Usage, error)

var (
	trackedDesc = prometheus.NewDesc("fairlead_conntrack_flows", "Flows that the kernel tracks.", nil, nil)
	limitDesc   = prometheus.NewDesc("fairlead_conntrack_limit", "Flows that it tracks at most; packets of more are dropped.", nil, nil)
	droppedDesc = prometheus.NewDesc("fairlead_conntrack_dropped_packets_total", "Packets that were dropped because their flows could not be tracked.", nil, nil)
)

// Tracking adds what read says of connection tracking; it is asked at each scrape.
func (m *Metrics) Tracking(read func() (conntrack.Usage, error)) {
	m.registry.MustRegister(tracking(read))
}

// Describe implements prometheus.Collector.
func (tracking) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{trackedDesc, limitDesc, droppedDesc} {
		out <- desc
	}
}

// Collect implements prometheus.Collector. Where nothing is tracked nothing is told.
func (read tracking) Collect(out chan<- prometheus.Metric) {
	u, err := read()
	if err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(trackedDesc, prometheus.GaugeValue, float64(u.Flows))
	out <- prometheus.MustNewConstMetric(limitDesc, prometheus.GaugeValue, float64(u.Limit))
	out <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(u.Dropped))
}
