package iptables

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// BenchmarkSync measures a node with many Services of five endpoints in each
// variant: everything written to an empty kernel, one endpoint changed, a start
// on rules that are all there.
func BenchmarkSync(b *testing.B) {
	const endpoints = 5
	for _, services := range []int{100, 1000, 10000} {
		for _, variant := range []string{"legacy", "nft"} {
			table := resolved(services*3/2, endpoints) // every third has no endpoint
			name := fmt.Sprintf("%s/services=%d", variant, len(table.Pools)/2)
			ns := netns.NewT(b)
			run := func(b *testing.B, f func() error) {
				b.Helper()
				if err := ns.Do(f); err != nil {
					b.Fatal(err)
				}
			}
			var backend *Backend
			start := func() (err error) {
				backend, err = New(Config{Variant: variant, MasqueradeMark: 0x4000})
				return err
			}
			b.Run(name+"/cold", func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					run(b, start)
					run(b, func() error { return backend.Cleanup(b.Context()) })
					b.StartTimer()
					run(b, func() error { return backend.Sync(b.Context(), table, service.Change{}) })
				}
			})
			b.Run(name+"/one-endpoint", func(b *testing.B) {
				id, turn := onePool(table), uint16(1)
				for b.Loop() {
					pool := table.Pools[id]
					pool.Backends = append([]netip.AddrPort(nil), pool.Backends...)
					pool.Backends[0] = netip.AddrPortFrom(pool.Backends[0].Addr(), turn)
					turn++
					table.Pools[id] = pool
					run(b, func() error {
						return backend.Sync(b.Context(), table, service.Change{Pools: []service.PoolID{id}})
					})
				}
			})
			b.Run(name+"/start", func(b *testing.B) {
				for b.Loop() {
					run(b, start)
					run(b, func() error { return backend.Sync(b.Context(), table, service.Change{}) })
				}
			})
		}
	}
}

func onePool(t *service.Table) service.PoolID {
	for id := range t.Pools {
		if !id.IPv6 {
			return id
		}
	}
	panic("no IPv4 pool")
}
