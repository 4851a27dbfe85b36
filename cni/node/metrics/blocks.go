package metrics

import "github.com/prometheus/client_golang/prometheus"

// Leased is what a network of this node has of a pool of the cluster.
type Leased struct {
	Network, Pool string
	Blocks        int
	Held, Cooling int    // addresses
	Free          uint64 // addresses
}

// Blocks has the blocks of pools asked for at each scrape.
func (m *Metrics) Blocks(read func() []Leased) {
	m.registry.MustRegister(blocks(read))
}

// blocks implements prometheus.Collector.
type blocks func() []Leased

var (
	blocksDesc = prometheus.NewDesc(prefix+"pool_blocks", "Blocks of a pool that this node has for a network.",
		[]string{"network", "pool"}, nil)
	leasedDesc = prometheus.NewDesc(prefix+"pool_addresses", "Addresses of this node's blocks of a pool that are held by pods, cooling or free.",
		[]string{"network", "pool", "state"}, nil)
)

// Describe implements prometheus.Collector.
func (blocks) Describe(to chan<- *prometheus.Desc) {
	to <- blocksDesc
	to <- leasedDesc
}

// Collect implements prometheus.Collector.
func (read blocks) Collect(to chan<- prometheus.Metric) {
	for _, l := range read() {
		to <- prometheus.MustNewConstMetric(blocksDesc, prometheus.GaugeValue, float64(l.Blocks), l.Network, l.Pool)
		for state, n := range map[string]float64{"held": float64(l.Held), "cooling": float64(l.Cooling), "free": float64(l.Free)} {
			to <- prometheus.MustNewConstMetric(leasedDesc, prometheus.GaugeValue, n, l.Network, l.Pool, state)
		}
	}
}
