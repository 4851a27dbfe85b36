package disk

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/ipam"
)

var (
	net4 = []ipam.Set{{ipam.Range{Subnet: netip.MustParsePrefix("10.0.0.0/8"), First: netip.MustParseAddr("10.0.0.1"),
		Last: netip.MustParseAddr("10.255.255.254"), Gateway: netip.MustParseAddr("10.0.0.1")}}}
	net6 = []ipam.Set{{ipam.Range{Subnet: netip.MustParsePrefix("fd00::/64"), First: netip.MustParseAddr("fd00::1"),
		Last: netip.MustParseAddr("fd00::ffff:ffff:ffff:ffff"), Gateway: netip.MustParseAddr("fd00::1")}}}
)

// fixed is a time for what does not depend on it.
var fixed = time.Unix(1_700_000_000, 0)

func owner(id string) ipam.Owner { return ipam.Owner{ContainerID: id, IfName: "eth0"} }

// add allocates in one transaction, as an ADD does.
func add(ctx context.Context, s *Store, sets []ipam.Set, o ipam.Owner) (addr netip.Addr, err error) {
	err = s.Update(ctx, func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, "boot"); err != nil {
			return err
		}
		given, err := ipam.Allocate(tx, sets, ipam.Request{
			Owner: o, Netns: "/run/netns/" + o.ContainerID, Pod: "default/" + o.ContainerID, Boot: "boot", Now: fixed,
		})
		if err == nil {
			addr = given[0].Prefix.Addr()
		}
		return err
	})
	return addr, err
}

// del releases in one transaction, as a DEL does.
func del(ctx context.Context, s *Store, o ipam.Owner) error {
	return s.Update(ctx, func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, "boot"); err != nil {
			return err
		}
		return ipam.Release(tx, o, fixed)
	})
}

// fill makes a store with n addresses held.
func fill(t testing.TB, sets []ipam.Set, n int) *Store {
	t.Helper()
	s, err := New(t.TempDir(), "bench")
	if err != nil {
		t.Fatal(err)
	}
	for done := 0; done < n; {
		err := s.Update(t.Context(), func(tx ipam.Tx) error {
			if err := ipam.Reclaim(tx, "boot"); err != nil {
				return err
			}
			for range min(1000, n-done) {
				o := owner(fmt.Sprintf("%064x", done))
				req := ipam.Request{Owner: o, Netns: "/run/netns/" + o.ContainerID, Pod: "default/x", Boot: "boot", Now: fixed}
				if _, err := ipam.Allocate(tx, sets, req); err != nil {
					return err
				}
				done++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// BenchmarkUpdate is one ADD and one DEL with so many addresses held: two
// openings of the file and two synced transactions.
func BenchmarkUpdate(b *testing.B) {
	for _, family := range []struct {
		name string
		sets []ipam.Set
	}{{"IPv4", net4}, {"IPv6", net6}} {
		for _, held := range []int{1, 60_000} {
			b.Run(fmt.Sprintf("%s/held=%d", family.name, held), func(b *testing.B) {
				s := fill(b, family.sets, held)
				b.ResetTimer()
				for i := range b.N {
					o := owner(fmt.Sprintf("bench%d", i))
					if _, err := add(b.Context(), s, family.sets, o); err != nil {
						b.Fatal(err)
					}
					if err := del(b.Context(), s, o); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkHeld is one ADD and one DEL, in turn on a store with one address held
// and on one with 60,000. Taking turns makes the machine's moods the same for
// both: it reports the ratio of their medians.
func BenchmarkHeld(b *testing.B) {
	few, many := fill(b, net4, 1), fill(b, net4, 60_000)
	took := map[*Store][]time.Duration{}
	b.ResetTimer()
	for i := range b.N {
		o := owner(fmt.Sprintf("bench%d", i))
		for _, s := range []*Store{few, many} {
			began := time.Now()
			if _, err := add(b.Context(), s, net4, o); err != nil {
				b.Fatal(err)
			}
			if err := del(b.Context(), s, o); err != nil {
				b.Fatal(err)
			}
			took[s] = append(took[s], time.Since(began))
		}
	}
	b.ReportMetric(float64(median(took[many]))/float64(median(took[few])), "ratio")
	b.ReportMetric(float64(median(took[few]).Nanoseconds()), "few-ns")
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// BenchmarkAllocate is the allocator's part alone: the transaction is rolled
// back, nothing is synced.
func BenchmarkAllocate(b *testing.B) {
	for _, held := range []int{1, 60_000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			file, err := open(b.Context(), fill(b, net4, held).path, os.O_RDWR)
			if err != nil {
				b.Fatal(err)
			}
			defer file.close()
			req := ipam.Request{Owner: owner("bench"), Boot: "boot", Now: fixed}
			for b.Loop() {
				tx, err := file.begin(true)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := ipam.Allocate(tx, net4, req); err != nil {
					b.Fatal(err)
				}
				tx.rollback()
			}
		})
	}
}

// BenchmarkContended is 16 ADDs at once.
func BenchmarkContended(b *testing.B) {
	s := fill(b, net4, 1)
	for i := range b.N {
		var all sync.WaitGroup
		for worker := range 16 {
			all.Go(func() {
				if _, err := add(b.Context(), s, net4, owner(fmt.Sprintf("c%d-%d", i, worker))); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
	}
}

// BenchmarkReclaim is the first transaction after a reboot.
func BenchmarkReclaim(b *testing.B) {
	for range b.N {
		b.StopTimer()
		s := fill(b, net4, 60_000)
		b.StartTimer()
		err := s.Update(b.Context(), func(tx ipam.Tx) error { return ipam.Reclaim(tx, "another boot") })
		if err != nil {
			b.Fatal(err)
		}
	}
}
