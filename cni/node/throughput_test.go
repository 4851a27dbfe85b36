package node

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/fairlead/fairlead/cni/node/masquerade"
)

// BenchmarkThroughput compares one TCP stream from pod to pod, directly and through
// VXLAN, with one over a bare path of as many hops, in slices that take turns.
// Nodes masquerade, as they do outside of tests; those of the bare path do nothing
// but forward.
func BenchmarkThroughput(b *testing.B) {
	w := newWorld(b)
	w.connect(testOptions)
	for _, n := range w.nodes {
		n.masquerade(b)
	}
	bareFrom := Member{Name: "d", Addrs: addrs("10.0.0.4", "fd00::4"), PodCIDRs: cidrs("10.244.4.0/24", "fd00:244:4::/64")}
	bareTo := Member{Name: "e", Addrs: addrs("10.0.0.5", "fd00::5"), PodCIDRs: cidrs("10.244.5.0/24", "fd00:244:5::/64")}
	w.add(bareFrom, "lan0", "10.0.0.254", "fd00::fe")
	w.add(bareTo, "lan0", "10.0.0.254", "fd00::fe")
	shell(b, w.nodes["d"].ns, "ip route add 10.244.5.0/24 via 10.0.0.5\nip -6 route add fd00:244:5::/64 via fd00::5")
	shell(b, w.nodes["e"].ns, "ip route add 10.244.4.0/24 via 10.0.0.4\nip -6 route add fd00:244:4::/64 via fd00::4")
	for family, name := range []string{"IPv4", "IPv6"} {
		b.Run(name, func(b *testing.B) {
			streams := []*tcpStream{
				newTCPStream(b, w.nodes["d"], w.nodes["e"], family),
				newTCPStream(b, w.nodes["d"], w.nodes["e"], family), // how much the same differs from itself
				newTCPStream(b, w.nodes["a"], w.nodes["b"], family),
				newTCPStream(b, w.nodes["a"], w.nodes["c"], family),
			}
			ratios := make([][]float64, len(streams))
			for b.Loop() {
				rates := make([]float64, len(streams))
				for _, i := range rand.Perm(len(streams)) {
					rates[i] = streams[i].rate(b, 100*time.Millisecond)
				}
				for i, rate := range rates {
					ratios[i] = append(ratios[i], rate/rates[0])
				}
			}
			b.ReportMetric(median(ratios[1]), "bare/bare")
			b.ReportMetric(median(ratios[2]), "direct/bare")
			b.ReportMetric(median(ratios[3]), "vxlan/bare")
		})
	}
}

func (n *testNode) masquerade(b *testing.B) {
	b.Helper()
	err := n.ns.Do(func() error {
		table, err := masquerade.OpenNFTables()
		if err != nil {
			return err
		}
		return table.Sync(n.PodCIDRs, masquerade.NewCluster(cidrs("10.0.0.0/8", "fd00::/8")...))
	})
	if err != nil {
		b.Fatal(err)
	}
}

func median(values []float64) float64 { return slices.Sorted(slices.Values(values))[len(values)/2] }

// tcpStream is a connection whose other end swallows what comes.
type tcpStream struct{ conn net.Conn }

func newTCPStream(b *testing.B, from, to *testNode, family int) *tcpStream {
	b.Helper()
	var l net.Listener
	at := netip.AddrPortFrom(to.podAddr(family, 2), 0)
	if err := to.pod.Do(func() (err error) { l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); return err }); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	s := &tcpStream{}
	if err := from.pod.Do(func() (err error) { s.conn, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); return err }); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.conn.Close() })
	return s
}

// rate sends for a while and returns the bytes per second.
func (s *tcpStream) rate(b *testing.B, d time.Duration) float64 {
	b.Helper()
	buf := make([]byte, 256<<10)
	started, sent := time.Now(), 0
	for time.Since(started) < d {
		n, err := s.conn.Write(buf)
		if sent += n; err != nil {
			b.Fatal(err)
		}
	}
	return float64(sent) / time.Since(started).Seconds()
}
