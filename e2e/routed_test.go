package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// routed is a lab of three nodes, of which the third is behind a router, with a
// pod on each.
func routed(t *testing.T) (*lab.Lab, []*lab.Pod) {
	t.Helper()
	l := labtest.New(t, lab.Options{Nodes: 3, Routed: true, BinDir: programs.Dir(t)})
	labtest.AwaitProxies(t, l)
	return l, addPods(t, l)
}

// addPods adds a pod on each node.
func addPods(t *testing.T, l *lab.Lab) []*lab.Pod {
	t.Helper()
	var pods []*lab.Pod
	for i, n := range l.Nodes {
		pods = append(pods, labtest.AddPod(t, l, n, fmt.Sprintf("pod-%d", i+1)))
	}
	return pods
}

// Datagrams of every size come back by every way, and are seen to come from the
// pod's own address: those that fit the way whole, larger ones in fragments, also
// where the underlay could take them whole and the other pod could not.
func TestRoutedSizes(t *testing.T) {
	_, pods := routed(t)
	exchangeAll(t, pods, 1430) // the underlay's less VXLAN over IPv6
}

// So do they where one node's link takes less than those of the others, if all nodes
// were told.
func TestUnequalMTUs(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 3, Routed: true, BinDir: programs.Dir(t), AgentFlags: []string{"--mtu", "1330"}})
	narrow := l.Nodes[1]
	narrow.NS().RunT(t, "ip", "link", "set", "eth0", "mtu", "1400")
	l.Outside().RunT(t, "ip", "link", "set", narrow.Name, "mtu", "1400") // the switch's port
	l.Outside().RunT(t, "ip", "link", "set", "switch", "mtu", "1500")    // else that of the least of its ports
	exchangeAll(t, addPods(t, l), 1330)
}

// exchangeAll has all pods, of that MTU, exchange datagrams of sizes around it and around
// that of the underlay.
func exchangeAll(t *testing.T, pods []*lab.Pod, mtu int) {
	t.Helper()
	const underlay = 1500
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
				s := stream(t, pods[0], to, addr)
				for range 3 {
					for _, n := range []*lab.Node{l.Nodes[0], to.Node} {
						s.AwaitMore(t, 200)
						if err := l.RestartAgent(n); err != nil {
							t.Fatal(err)
						}
					}
				}
				s.AwaitMore(t, 200)
				s.End(t)
			})
		}
	}
}

// stream begins 1,000 datagrams a second from one pod to another.
func stream(t *testing.T, from, to *lab.Pod, addr netip.Addr) *traffic.Stream {
	t.Helper()
	return traffic.NewStream(t, from.NS(), to.NS(), netip.AddrPortFrom(addr, 9999))
}
