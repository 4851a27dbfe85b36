package masquerade

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// BenchmarkChange has one of many nodes get another address and another range, in
// both families.
func BenchmarkChange(b *testing.B) {
	for _, count := range []int{10, 1000, 5000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			ns := netns.NewT(b)
			var table *NFTables
			if err := ns.Do(func() (err error) { table, err = OpenNFTables(); return err }); err != nil {
				b.Fatal(err)
			}
			var c Cluster
			for i := range count {
				hi, lo := byte(i>>7), byte(i<<1) // no two of which are neighbours
				c.Add(netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16 + hi, lo, 0}), 24), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100, hi, lo}), 32),
					netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x88, 6: hi, 7: lo}), 64), netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 14: hi, 15: lo}), 128))
			}
			pods := []netip.Prefix{netip.MustParsePrefix("192.168.0.0/24"), netip.MustParsePrefix("fd77::/64")}
			if err := table.Sync(pods, &c); err != nil {
				b.Fatal(err)
			}
			var last []netip.Prefix
			var changes int
			before := processorTime(b)
			for i := 0; b.Loop(); i++ {
				changes++
				c.Remove(last...)
				last = []netip.Prefix{
					netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, 0, byte(2 * i)}), 32), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 201, byte(2 * i), 0}), 24),
					netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 9, 15: byte(2 * i)}), 128), netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 8, 7: byte(2 * i)}), 64),
				}
				c.Add(last...)
				if err := table.Sync(pods, &c); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((processorTime(b)-before).Nanoseconds())/float64(changes), "cpu-ns/op")
		})
	}
}

// processorTime is what this process has had, in the kernel too.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
