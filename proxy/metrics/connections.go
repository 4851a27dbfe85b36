package metrics

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/proxy/service"
)

// connections tells how many connections Service ports have got. The number of
// series is limited, whatever the number of Services: who comes first has a series of
// its own, and keeps it until it goes; all others have one together, with empty
// labels.
type connections struct {
	limit int
	read  func() (map[service.Origin]uint64, error)

	mu     sync.Mutex // guards what follows
	own    map[service.Origin]bool
	others map[service.Origin]uint64 // Service port without a series → what was last read of it
	total  uint64                    // of those, and of those of them that are gone
}

var connectionsDesc = prometheus.NewDesc("fairlead_service_connections_total",
	"Connections that were led to endpoints. Those of Service ports beyond the limit are counted together, without labels.",
	[]string{"namespace", "service", "port"}, nil)

// CountConnections adds what read says of connections to what is told: for each
// Service port how many there have been. At most limit Service ports have a series of
// their own. While read fails nothing is told.
func (m *Metrics) CountConnections(limit int, read func() (map[service.Origin]uint64, error)) {
	m.registry.MustRegister(&connections{limit: limit, read: read, own: map[service.Origin]bool{}, others: map[service.Origin]uint64{}})
}

// Describe implements prometheus.Collector.
func (c *connections) Describe(out chan<- *prometheus.Desc) { out <- connectionsDesc }

// Collect implements prometheus.Collector.
func (c *connections) Collect(out chan<- prometheus.Metric) {
	got, err := c.read()
	if err != nil {
		return
	}
	tell := func(n uint64, o service.Origin) {
		out <- prometheus.MustNewConstMetric(connectionsDesc, prometheus.CounterValue, float64(n), o.Service.Namespace, o.Service.Name, o.Port)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sort(got)
	for origin := range c.own {
		tell(got[origin], origin)
	}
	for origin, last := range c.others {
		now := got[origin]
		if now < last { // it went and came again
			last = 0
		}
		c.total += now - last
		c.others[origin] = now
	}
	if c.total > 0 {
		tell(c.total, service.Origin{})
	}
}

// sort decides who has a series.
func (c *connections) sort(got map[service.Origin]uint64) {
	gone := func(o service.Origin) bool { _, ok := got[o]; return !ok }
	maps.DeleteFunc(c.own, func(o service.Origin, _ bool) bool { return gone(o) })
	maps.DeleteFunc(c.others, func(o service.Origin, _ uint64) bool { return gone(o) })
	var come []service.Origin
	for origin := range got {
		_, other := c.others[origin]
		if !c.own[origin] && !other {
			come = append(come, origin)
		}
	}
	slices.SortFunc(come, service.Origin.Compare)
	for _, origin := range come {
		if len(c.own) < c.limit {
			c.own[origin] = true
		} else {
			c.others[origin] = 0
		}
	}
}
