package bpf

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// BenchmarkSync measures a node with many Services of five endpoints: everything
// written to an empty kernel, one endpoint changed, a new process on rows that are all
// there.
func BenchmarkSync(b *testing.B) {
	for _, services := range []int{1000, 10000, 30000} {
		r := cluster(services, 5)
		b.Run(fmt.Sprintf("services=%d/cold", services), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				backend := start(b, Config{})
				b.StartTimer()
				sync(b, backend, r, service.Change{})
				b.StopTimer()
				_ = backend.Cleanup(context.Background())
				b.StartTimer()
			}
		})
		backend := start(b, Config{})
		sync(b, backend, r, service.Change{})
		b.Run(fmt.Sprintf("services=%d/warm", services), func(b *testing.B) {
			for b.Loop() {
				backend.have = nil
				sync(b, backend, r, service.Change{})
			}
			if backend.written != 0 {
				b.Errorf("%d rows written", backend.written)
			}
		})
		b.Run(fmt.Sprintf("services=%d/one-endpoint", services), func(b *testing.B) {
			var took []time.Duration
			n := 4
			for b.Loop() {
				b.StopTimer()
				change := resize(r, 17, n)
				n = 9 - n
				b.StartTimer()
				began := time.Now()
				sync(b, backend, r, change)
				took = append(took, time.Since(began))
			}
			reportQuantiles(b, took)
		})
	}
}

func reportQuantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
