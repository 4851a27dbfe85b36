package node

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// benchMembers are nodes with pods of both families: half on the link of this
// node, half behind a router.
func benchMembers(n int) []Member {
	members := make([]Member, n)
	for i := range members {
		hi, lo := byte(i>>8), byte(i)
		lan4, lan6 := byte(0), byte(0)
		if i%2 == 1 {
			lan4, lan6 = 9, 9
		}
		members[i] = Member{
			Name: fmt.Sprintf("node-%04d", i),
			Addrs: []netip.Addr{
				netip.AddrFrom4([4]byte{10, 100 + lan4, hi, lo}),
				netip.AddrFrom16([16]byte{0: 0xfd, 1: lan6, 13: 1, 14: hi, 15: lo}),
			},
			PodCIDRs: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16 + hi, lo, 0}), 24),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x88, 6: hi, 7: lo}), 64),
			},
		}
	}
	return members
}

// benchNode is a node that has such others.
func benchNode(b *testing.B) *testNode {
	b.Helper()
	n := &testNode{
		Member: Member{Name: "self", Addrs: addrs("10.100.255.1", "fd00::ff:1"), PodCIDRs: cidrs("192.168.0.0/24", "fd77::/64")},
		ns:     netns.NewT(b),
	}
	n.ns.RunT(b, "sh", "-ec", `
		sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
		ip link set lo up
		ip link add eth0 type bridge
		ip addr add 10.100.255.1/16 dev eth0
		ip addr add fd00::ff:1/64 dev eth0 nodad
		ip link set eth0 up
		ip route add default via 10.100.255.254`)
	return n
}

// BenchmarkAppear has 1,000 nodes appear at once, planned and programmed.
func BenchmarkAppear(b *testing.B) {
	members := benchMembers(1000)
	for b.Loop() {
		b.StopTimer()
		n := benchNode(b)
		n.kernel = openKernel(b, n.ns)
		b.StartTimer()
		benchSync(b, n, members)
	}
}

// BenchmarkChange has one of many nodes get another address, planned and
// programmed. The news of it are taken in in between.
func BenchmarkChange(b *testing.B) {
	for _, count := range []int{10, 1000, 5000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			members := benchMembers(count)
			n := benchNode(b)
			n.kernel = openKernel(b, n.ns)
			p := NewPlanner(n.Name, testOptions)
			for _, m := range append(members, n.Member) {
				p.Set(m, &n.kernel.underlay)
			}
			for !n.kernel.Agrees() { // news of what is only half made come in between
				benchMust(b, n.syncWhole(p))
				n.takeNews(b)
			}
			changed := members[count-1]
			wrote, changes, spent := n.kernel.Wrote(), 0, time.Duration(0)
			for b.Loop() {
				changes++
				before := processorTime(b)
				changed.Addrs = addrs(fmt.Sprintf("10.200.0.%d", 1+changes%2), fmt.Sprintf("fd0a::%d", 1+changes%2))
				c, ok := p.Set(changed, &n.kernel.underlay)
				if !ok || !n.kernel.Agrees() {
					b.Fatalf("the plan cannot follow: it can %t, the kernel agrees %t", ok, n.kernel.Agrees())
				}
				benchMust(b, n.kernel.Change(c))
				spent += processorTime(b) - before
				b.StopTimer()
				n.takeNews(b)
				b.StartTimer()
			}
			b.ReportMetric(float64(n.kernel.Wrote()-wrote)/float64(changes), "writes/op")
			b.ReportMetric(float64(spent.Nanoseconds())/float64(changes), "cpu-ns/op")
		})
	}
}

// processorTime is what this process has had, in the kernel too: on a machine that
// does other work as well it says more than the time that went by.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage unix.Rusage
	benchMust(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (n *testNode) syncWhole(p *Planner) error {
	u, err := n.kernel.Underlay()
	if err != nil {
		return err
	}
	return n.kernel.Sync(p.Whole(u))
}

func benchMust(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRestart reads what 1,000 nodes need and finds it right.
func BenchmarkRestart(b *testing.B) {
	members := benchMembers(1000)
	n := benchNode(b)
	n.kernel = openKernel(b, n.ns)
	benchSync(b, n, members)
	for b.Loop() {
		n.kernel.known = false
		benchSync(b, n, members)
	}
}

// takeNews takes in all news of what has happened so far: those until the kernel
// tells of a route that is made and deleted for this.
func (n *testNode) takeNews(b *testing.B) {
	b.Helper()
	const table = 99
	marker := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), Type: unix.RTN_BLACKHOLE, Table: table}
	benchMust(b, n.kernel.handle.RouteAdd(marker))
	benchMust(b, n.kernel.handle.RouteDel(marker))
	for news := range n.kernel.News() {
		n.kernel.Note(news)
		for _, m := range news.messages {
			if r, ok := parseRoute(m.Data); ok && m.Header.Type == unix.RTM_DELROUTE && r.table == table {
				return
			}
		}
	}
}

func benchSync(b *testing.B, n *testNode, others []Member) {
	b.Helper()
	plan, err := n.trySync(others, testOptions)
	if err != nil {
		b.Fatal(err)
	}
	if len(plan.Problems) > 0 {
		b.Fatal(plan.Problems)
	}
}
