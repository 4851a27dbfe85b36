package e2e

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Every pod reaches every pod, directly and through tunnels: it asks over every
// protocol, pings, and sends streams, all pods at once. Every receiver sees the
// sender's own address.
func TestRoutedMesh(t *testing.T) {
	l, pods := routed(t)
	for _, want := range []string{"10.244.2.0/24 via 192.168.244.12 dev eth0", "10.244.3.0/24 via 192.168.245.13 dev fairlead-vx4"} {
		out, err := l.Nodes[0].Output(t.Context(), "ip", "route")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, want) {
			t.Errorf("no route %s:\n%s", want, out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ends := map[*lab.Pod]*meshEnd{}
	for _, p := range pods {
		ends[p] = newMeshEnd(t, p)
	}
	t.Run("asks", func(t *testing.T) {
		mesh(t, pods, func(from, to *lab.Pod, _ int) error { return askAll(ctx, from, to) })
	})
	t.Run("pings", func(t *testing.T) {
		mesh(t, pods, func(from, to *lab.Pod, i int) error { return ping(ctx, ends[from], ends[to], i) })
	})
	t.Run("TCP", func(t *testing.T) {
		mesh(t, pods, func(from, to *lab.Pod, i int) error { return sendTCP(ctx, from, from.Addrs[i], to.Addrs[i]) })
	})
	t.Run("UDP", func(t *testing.T) {
		mesh(t, pods, func(from, to *lab.Pod, i int) error { return sendUDP(ctx, from, from.Addrs[i], ends[to], to.Addrs[i]) })
	})
}

// mesh does something from every pod to every other one at once, with each of their
// addresses, whose index do is told.
func mesh(t *testing.T, pods []*lab.Pod, do func(from, to *lab.Pod, i int) error) {
	t.Helper()
	var pairs errgroup.Group
	for _, from := range pods {
		for _, to := range pods {
			for i := range to.Addrs {
				if from == to {
					continue
				}
				pairs.Go(func() error {
					if err := do(from, to, i); err != nil {
						return fmt.Errorf("%s to %s, %s: %w", from.Name, to.Name, to.Addrs[i], err)
					}
					return nil
				})
			}
		}
	}
	if err := pairs.Wait(); err != nil {
		t.Error(err)
	}
}

// askAll asks a pod's server over every protocol.
func askAll(ctx context.Context, from, to *lab.Pod) error {
	for _, at := range to.Endpoints() {
		reply, err := from.Ask(ctx, at)
		if err == nil && (reply.Name != to.Name || !slices.Contains(from.Addrs, reply.Client.Addr())) {
			err = fmt.Errorf("%s saw %s", reply.Name, reply.Client)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", at.Network, err)
		}
	}
	return nil
}

// meshEnd is what receives in a pod.
type meshEnd struct {
	pings []*net.IPConn // by index of the pod's address

	mu    sync.Mutex      // guards what follows
	heard map[string]bool // "request ADDR" or "reply ADDR": what came by ICMP, and from where
	came  map[string]int  // "FROM TO" → how many datagrams of a stream
}

const (
	meshPort = 9997
	streams  = 200     // datagrams in a stream, or
	volume   = 1 << 20 // bytes
)

func newMeshEnd(t *testing.T, p *lab.Pod) *meshEnd {
	t.Helper()
	e := &meshEnd{heard: map[string]bool{}, came: map[string]int{}}
	err := p.NS().Do(func() error {
		for _, a := range p.Addrs {
			if err := e.listen(t, a); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *meshEnd) listen(t *testing.T, a netip.Addr) error {
	network := "ip4:icmp"
	if a.Is6() {
		network = "ip6:ipv6-icmp"
	}
	pings, err := net.ListenIP(network, &net.IPAddr{IP: a.AsSlice()})
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = pings.Close() })
	e.pings = append(e.pings, pings)
	datagrams, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, meshPort)))
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = datagrams.Close() })
	conns, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, meshPort)))
	if err != nil {
		return err
	}
	t.Cleanup(func() { _ = conns.Close() })
	go e.hear(pings, a)
	go e.count(datagrams, a)
	go accept(conns)
	return nil
}

// hear takes in echo requests, which the kernel answers, and replies.
func (e *meshEnd) hear(conn *net.IPConn, at netip.Addr) {
	protocol := 1
	if at.Is6() {
		protocol = 58
	}
	for buf := make([]byte, 1500); ; {
		n, from, err := conn.ReadFromIP(buf)
		if err != nil {
			return
		}
		message, err := icmp.ParseMessage(protocol, buf[:n])
		if err != nil {
			continue
		}
		addr, _ := netip.AddrFromSlice(from.IP)
		switch message.Type {
		case ipv4.ICMPTypeEcho, ipv6.ICMPTypeEchoRequest:
			e.note(func() { e.heard["request "+addr.Unmap().String()] = true })
		case ipv4.ICMPTypeEchoReply, ipv6.ICMPTypeEchoReply:
			e.note(func() { e.heard["reply "+addr.Unmap().String()] = true })
		}
	}
}

// count counts the datagrams of each sender.
func (e *meshEnd) count(conn *net.UDPConn, at netip.Addr) {
	for buf := make([]byte, 1500); ; {
		_, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		e.note(func() { e.came[from.Addr().Unmap().String()+" "+at.String()]++ })
	}
}

func (e *meshEnd) note(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

func (e *meshEnd) hasHeard(what string, addr netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard[what+" "+addr.String()]
}

// accept reads each connection to its end, and says who sent it and what.
func accept(l *net.TCPListener) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			sum := sha256.New()
			if _, err := io.Copy(sum, conn); err == nil {
				from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
				_, _ = fmt.Fprintf(conn, "%s %x", from, sum.Sum(nil))
			}
		}()
	}
}

// ping sends echo requests until the other end has seen one come from the pod's own
// address, and the answer to it has come.
func ping(ctx context.Context, from, to *meshEnd, i int) error {
	source := from.pings[i].LocalAddr().(*net.IPAddr)
	target := to.pings[i].LocalAddr().(*net.IPAddr)
	src, _ := netip.AddrFromSlice(source.IP)
	dst, _ := netip.AddrFromSlice(target.IP)
	src, dst = src.Unmap(), dst.Unmap()
	message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: 1, Seq: i, Data: make([]byte, 56)}}
	if dst.Is6() {
		message.Type = ipv6.ICMPTypeEchoRequest // whose checksum the kernel makes
	}
	packet, err := message.Marshal(nil)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if _, err := from.pings[i].WriteToIP(packet, target); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
		if to.hasHeard("request", src) && from.hasHeard("reply", dst) {
			return nil
		}
	}
	return fmt.Errorf("ping: request came from the pod's own address: %t, reply: %t", to.hasHeard("request", src), from.hasHeard("reply", dst))
}

// sendTCP sends a stream and hears from its receiver what came, and from whom.
func sendTCP(ctx context.Context, pod *lab.Pod, src, dst netip.Addr) error {
	var conn *net.TCPConn
	err := pod.NS().Do(func() (err error) {
		conn, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, netip.AddrPortFrom(dst, meshPort))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end)
	}
	stream := make([]byte, volume)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(src.String() + dst.String()))).Read(stream)
	if _, err := conn.Write(stream); err != nil {
		return err
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(conn)
	if want := fmt.Sprintf("%s %x", src, sha256.Sum256(stream)); err == nil && string(got) != want {
		err = fmt.Errorf("stream: the receiver saw %q, want %q", got, want)
	}
	return err
}

// sendUDP sends a stream of datagrams, of which none is lost.
func sendUDP(ctx context.Context, pod *lab.Pod, src netip.Addr, to *meshEnd, dst netip.Addr) error {
	var conn *net.UDPConn
	err := pod.NS().Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, meshPort)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for range streams {
		if _, err := conn.Write(make([]byte, 1000)); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	came := 0
	for range 500 {
		to.note(func() { came = to.came[src.String()+" "+dst.String()] })
		if came == streams {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(ctx.Err(), fmt.Errorf("of %d datagrams %d came from %s", streams, came, src))
}
