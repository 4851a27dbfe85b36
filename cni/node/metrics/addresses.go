package metrics

import (
	"math/big"

	"github.com/prometheus/client_golang/prometheus"
)

// Range is how many addresses of a range are in each state.
type Range struct {
	Network     string
	First, Last string
	Held        int
	Cooling     int // freed so lately that they are given only when nothing else is left
	Free        *big.Int
}

// Addresses has the ranges of this node's networks asked for at each scrape. What
// cannot be read is an error of the kind "addresses".
func (m *Metrics) Addresses(read func() ([]Range, error)) {
	m.registry.MustRegister(addresses{m, read})
}

// addresses implements prometheus.Collector.
type addresses struct {
	metrics *Metrics
	read    func() ([]Range, error)
}

var addressesDesc = prometheus.NewDesc(prefix+"addresses", "Addresses of this node's networks that are held by pods, cooling or free.",
	[]string{"network", "range", "state"}, nil)

// Describe implements prometheus.Collector.
func (a addresses) Describe(to chan<- *prometheus.Desc) { to <- addressesDesc }

// Collect implements prometheus.Collector.
func (a addresses) Collect(to chan<- prometheus.Metric) {
	ranges, err := a.read()
	if err != nil {
		a.metrics.Failed("addresses")
	}
	for _, r := range ranges {
		free, _ := new(big.Float).SetInt(r.Free).Float64()
		for state, n := range map[string]float64{"held": float64(r.Held), "cooling": float64(r.Cooling), "free": free} {
			to <- prometheus.MustNewConstMetric(addressesDesc, prometheus.GaugeValue, n, r.Network, r.First+"-"+r.Last, state)
		}
	}
}
