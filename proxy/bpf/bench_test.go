package bpf

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	cilium "github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// BenchmarkSync measures a node with many Services of five endpoints: everything
// written to an empty kernel, one endpoint changed, a new process on rows that are all
// there, all rows read back, which is done once a minute.
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
			b.ReportMetric(float64(mapMemory(b, backend.config.Root))/1e6, "maps-MB")
		})
		b.Run(fmt.Sprintf("services=%d/read-back", services), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for backend.looks = range looksUntilRead {
					if ok, err := backend.rowsIntact(); !ok || err != nil {
						b.Fatal(ok, err)
					}
				}
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

// mapMemory is what the pinned maps take, in bytes, as the kernel says.
func mapMemory(t testing.TB, root string) (all uint64) {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(root, "maps", "*"))
	if err != nil || len(pins) == 0 {
		t.Fatalf("%d maps, %v", len(pins), err)
	}
	for _, pin := range pins {
		m, err := cilium.LoadPinnedMap(pin, nil)
		if err != nil {
			t.Fatal(err)
		}
		info, err := m.Info()
		if err != nil {
			t.Fatal(err)
		}
		bytes, _ := info.Memlock()
		all += bytes
		_ = m.Close()
	}
	return all
}

// BenchmarkConnect is the time of the connect hook, which the kernel takes: to a
// virtual IP, and to where no Service is.
func BenchmarkConnect(b *testing.B) {
	node := netns.NewT(b)
	group := cgroup.NewT(b)
	node.Join(group)
	node.RunT(b, "ip", "link", "set", "lo", "up")
	node.RunT(b, "ip", "route", "add", "default", "dev", "lo")
	r := cluster(10000, 5)
	backend := startIn(b, node, Config{Root: filepath.Join(b.TempDir(), "bpf"), CgroupRoot: group.Path})
	sync(b, backend, r, service.Change{})
	for name, to := range map[string]*unix.SockaddrInet4{
		"a Service's": {Addr: [4]byte{10, 96, 0, 17}, Port: 80},
		"no Service":  {Addr: [4]byte{10, 97, 0, 17}, Port: 80},
	} {
		b.Run(name, func(b *testing.B) {
			stats, err := cilium.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = stats.Close() }()
			before := runTime(b, backend.config.Root, "sock_connect4")
			if err := node.Do(func() error { return connectAll(to, b.N) }); err != nil {
				b.Fatal(err)
			}
			after := runTime(b, backend.config.Root, "sock_connect4")
			b.ReportMetric(float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount), "ns/connect")
		})
	}
}

// connectAll begins n connections over TCP, none of which is brought to its end.
func connectAll(to *unix.SockaddrInet4, n int) error {
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
			return fmt.Errorf("connect: %w", err)
		}
		_ = unix.Close(fd)
	}
	return nil
}

// runTime is what the kernel has counted of a program.
func runTime(t testing.TB, root, name string) *cilium.ProgramStats {
	t.Helper()
	l, err := link.LoadPinnedLink(filepath.Join(root, "links", name), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	info, err := l.Info()
	if err != nil {
		t.Fatal(err)
	}
	p, err := cilium.NewProgramFromID(info.Program)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	stats, err := p.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return stats
}
