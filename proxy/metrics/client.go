package metrics

import (
	"context"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	client "k8s.io/client-go/tools/metrics"
)

// Client has what this process asks of API servers counted, under the names and with the
// labels that Kubernetes' own programs have for it. The first one of a process counts
// (client-go has one place for it).
func (m *Metrics) Client() {
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rest_client_request_duration_seconds", Help: "Time that requests to the API server took.",
		Buckets: []float64{0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60},
	}, []string{"verb", "host"})
	m.registry.MustRegister(took)
	client.Register(client.RegisterOpts{
		RequestLatency: latency{took},
		RequestResult:  results{m.counters("rest_client_requests_total", "Requests to the API server, by how they were answered.", "code", "method", "host")},
		RequestRetry:   retries{m.counters("rest_client_request_retries_total", "Requests to the API server that were made again.", "code", "verb", "host")},
	})
}

type latency struct{ *prometheus.HistogramVec }

func (l latency) Observe(_ context.Context, verb string, u url.URL, took time.Duration) {
	l.WithLabelValues(verb, u.Host).Observe(took.Seconds())
}

type results struct{ *prometheus.CounterVec }

func (r results) Increment(_ context.Context, code, method, host string) {
	r.WithLabelValues(code, method, host).Inc()
}

type retries struct{ *prometheus.CounterVec }

func (r retries) IncrementRetry(_ context.Context, code, method, host string) {
	r.WithLabelValues(code, method, host).Inc()
}
