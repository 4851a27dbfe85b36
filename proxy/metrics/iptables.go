package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairlead/fairlead/proxy/iptables"
)

// IPTables are kube-proxy's metrics of its iptables mode.
type IPTables struct {
	full, partial, flows                *prometheus.HistogramVec // by family, as all are
	staleFlows                          *prometheus.CounterVec
	restoreFailures, partialRestoreFail *prometheus.CounterVec
	hung                                *prometheus.CounterVec
	rules, written                      *prometheus.GaugeVec // by table too
}

// IPTables adds the metrics of mode iptables. Packets is asked at each scrape.
func (m *Metrics) IPTables(packets func() (iptables.Packets, error)) *IPTables {
	const rules = "kubeproxy_sync_proxy_rules_iptables_"
	i := &IPTables{
		full:               m.histograms("kubeproxy_sync_full_proxy_rules_duration_seconds", "Time of rounds in which all rules were compiled.", short()),
		partial:            m.histograms("kubeproxy_sync_partial_proxy_rules_duration_seconds", "Time of rounds in which only what changed was looked at.", short()),
		flows:              m.histograms("kubeproxy_conntrack_reconciler_sync_duration_seconds", "Time that looking for stale flows took.", short()),
		staleFlows:         m.counters("kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale flows that were ended.", "ip_family"),
		restoreFailures:    m.counters(rules+"restore_failures_total", "Rounds that iptables-restore or the kernel did not take.", "ip_family"),
		partialRestoreFail: m.counters(rules+"partial_restore_failures_total", "Those of them in which only what changed was written; the next one looked at everything.", "ip_family"),
		hung:               m.counters("fairlead_iptables_hung_total", "Rounds in which a command of iptables came to no end, and was ended.", "ip_family"),
		rules:              m.gauges(rules+"total", "Rules that are Fairlead's.", "table", "ip_family"),
		written:            m.gauges(rules+"last", "Rules that the last round wrote.", "table", "ip_family"),
	}
	m.registry.MustRegister(packetCounters(packets))
	return i
}

// Round notes a round.
func (i *IPTables) Round(r iptables.Round) {
	family := familyOf(r.IPv6)
	if r.Hung {
		i.hung.WithLabelValues(family).Inc()
	}
	if r.Failed {
		i.restoreFailures.WithLabelValues(family).Inc()
		if !r.Full {
			i.partialRestoreFail.WithLabelValues(family).Inc()
		}
		return
	}
	duration := i.partial
	if r.Full {
		duration = i.full
	}
	duration.WithLabelValues(family).Observe(r.Took.Seconds())
	if r.Flows > 0 {
		i.flows.WithLabelValues(family).Observe(r.Flows.Seconds())
		i.staleFlows.WithLabelValues(family).Add(float64(r.StaleFlows))
	}
	for table, n := range r.Rules {
		i.rules.WithLabelValues(table, family).Set(float64(n))
		i.written.WithLabelValues(table, family).Set(float64(r.Written[table]))
	}
}

// packetCounters tells what the kernel has counted.
type packetCounters func() (iptables.Packets, error)

var (
	invalidDesc = prometheus.NewDesc("kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
		"Packets that connection tracking cannot place, which are not forwarded.", nil, nil)
	localhostDesc = prometheus.NewDesc("kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
		"First packets of connections to node ports on localhost.", nil, nil)
)

// Describe implements prometheus.Collector.
func (packetCounters) Describe(out chan<- *prometheus.Desc) {
	out <- invalidDesc
	out <- localhostDesc
}

// Collect implements prometheus.Collector.
func (read packetCounters) Collect(out chan<- prometheus.Metric) {
	p, err := read()
	if err != nil {
		return
	}
	out <- prometheus.MustNewConstMetric(invalidDesc, prometheus.CounterValue, float64(p.InvalidDropped))
	out <- prometheus.MustNewConstMetric(localhostDesc, prometheus.CounterValue, float64(p.LocalhostAccepted))
}
