package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

// routed is a lab of three nodes, of which the third is behind a router, with a
// pod on each.
func routed(t *testing.T) (*lab.Lab, []*lab.Pod) {
	t.Helper()
	l := labtest.New(t, lab.Options{Nodes: 3, Routed: true, BinDir: programs.Dir(t)})
	var pods []*lab.Pod
	for i, n := range l.Nodes {
		pods = append(pods, labtest.AddPod(t, l, n, fmt.Sprintf("pod-%d", i+1)))
	}
	return l, pods
}

// Datagrams of every size come back by every way, and are seen to come from the
// pod's own address: those that fit the way whole, larger ones in fragments, also
// where the underlay could take them whole and the other pod could not.
func TestRoutedSizes(t *testing.T) {
	_, pods := routed(t)
	const underlay, mtu = 1500, 1430 // the pods': that of the underlay less VXLAN over IPv6
	var pairs errgroup.Group
	for _, to := range pods {
		for _, addr := range to.Addrs {
			at := reflect(t, to, addr)
			for _, from := range pods {
				if from == to {
					continue
				}
				header := 28 // IPv4, UDP
				if addr.Is6() {
					header = 48
				}
				pairs.Go(func() error {
					return exchange(from, at, 100, mtu-header, mtu-header+1, (mtu+underlay)/2-header, underlay-header, underlay-header+1, 4000, 60_000)
				})
			}
		}
	}
	if err := pairs.Wait(); err != nil {
		t.Error(err)
	}
}

// reflect has a pod send every datagram back, with whom it saw at its beginning.
func reflect(t *testing.T, p *lab.Pod, addr netip.Addr) netip.AddrPort {
	t.Helper()
	at := netip.AddrPortFrom(addr, 9998)
	var conn *net.UDPConn
	err := p.NS().Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for buf := make([]byte, 1<<16); ; {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			copy(buf, from.Addr().Unmap().String()+" ")
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return at
}

// exchange sends datagrams of some sizes until each has come back.
func exchange(from *lab.Pod, at netip.AddrPort, sizes ...int) error {
	var conn *net.UDPConn
	err := from.NS().Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 1<<16)
	for _, size := range sizes {
		n := 0
		for range 20 { // the first one that is too large for the way may be lost, and makes the way known
			if _, err := conn.Write(make([]byte, size)); err != nil {
				return err
			}
			if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
				return err
			}
			if n, err = conn.Read(buf); err == nil {
				break
			}
		}
		saw, _, _ := strings.Cut(string(buf[:n]), " ")
		if err != nil || n != size || !strings.Contains(fmt.Sprint(from.Addrs), saw) {
			return fmt.Errorf("%s to %s: of %d bytes %d came back, sent by %q: %w", from.Name, at, size, n, saw, err)
		}
	}
	return nil
}

// While fairlead node is killed and started again on both nodes, none of 1,000
// packets a second between their pods is lost.
func TestRestartLosesNothing(t *testing.T) {
	l, pods := routed(t)
	for _, to := range pods[1:] {
		for _, addr := range to.Addrs {
			t.Run(fmt.Sprintf("to %s", addr), func(t *testing.T) {
				s := newStream(t, pods[0], to, addr)
				for range 3 {
					for _, n := range []*lab.Node{l.Nodes[0], to.Node} {
						s.awaitMore(t, 200)
						if err := l.RestartAgent(n); err != nil {
							t.Fatal(err)
						}
					}
				}
				s.awaitMore(t, 200)
				s.end(t)
			})
		}
	}
}

// stream is 1,000 datagrams a second from one pod to another.
type stream struct {
	name     string
	from, to *net.UDPConn
	stop     context.CancelFunc
	sent     chan int64 // how many, when it has ended
	arrived  atomic.Int64
}

func newStream(t *testing.T, from, to *lab.Pod, addr netip.Addr) *stream {
	t.Helper()
	s := &stream{name: fmt.Sprintf("%s to %s", from.Name, addr), sent: make(chan int64, 1)}
	at := net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 9999))
	err := to.NS().Do(func() (err error) {
		s.to, err = net.ListenUDP("udp", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.to.Close() })
	if err := s.to.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	err = from.NS().Do(func() (err error) {
		s.from, err = net.DialUDP("udp", nil, at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.from.Close() })
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	go s.receive()
	go s.send(ctx)
	return s
}

func (s *stream) receive() {
	for buf := make([]byte, 64); ; {
		if _, err := s.to.Read(buf); err != nil {
			return
		}
		s.arrived.Add(1)
	}
}

func (s *stream) send(ctx context.Context) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for n := int64(0); ; n++ {
		select {
		case <-ctx.Done():
			s.sent <- n
			return
		case <-tick.C:
		}
		if _, err := s.from.Write([]byte("datagram")); err != nil {
			s.sent <- -1
			return
		}
	}
}

// awaitMore waits for a number of datagrams.
func (s *stream) awaitMore(t *testing.T, count int64) {
	t.Helper()
	if now := s.arrived.Load(); !s.await(now + count) {
		t.Fatalf("stream %s: it ends after %d datagrams", s.name, s.arrived.Load())
	}
}

// await waits until so many datagrams have arrived, and reports false if none has for
// some time.
func (s *stream) await(count int64) bool {
	last, since := s.arrived.Load(), time.Now()
	for last < count {
		if time.Since(since) > 5*time.Second {
			return false
		}
		time.Sleep(5 * time.Millisecond)
		if now := s.arrived.Load(); now != last {
			last, since = now, time.Now()
		}
	}
	return true
}

// end ends the stream and checks that all that was sent has arrived.
func (s *stream) end(t *testing.T) {
	t.Helper()
	s.stop()
	sent := <-s.sent
	if !s.await(sent) || s.arrived.Load() != sent {
		t.Errorf("stream %s: %d of %d datagrams arrived", s.name, s.arrived.Load(), sent)
	}
}
