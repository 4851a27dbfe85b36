package proxytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// beyond is a host behind the gateway, on a link with a small MTU: what is too big for
// that, the gateway says in an ICMP error, to whom it thinks is the sender.
var beyond = [2]netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd00:18::2")}

const (
	beyondMTU  = 1300
	mirrorPort = 7070
	streamed   = 4 << 20 // bytes of a stream
)

// sizes sends packets of all sizes to and fro: segments that a device would cut and sum
// up (TSO, CHECKSUM_PARTIAL; between namespaces nothing ever does), fragments, and
// packets that are too big for a link on the way.
func (c *cluster) sizes(t *testing.T) {
	mirrors := map[string]*netns.NS{"c": c.parties["c"], "beyond": c.addBeyond(t)}
	defer c.parties["gateway"].RunT(t, "sh", "-ec", "ip link del beyond; sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
	for name, ns := range mirrors {
		c.mirror(t, ns, c.mirrorAddr(name))
	}
	parties := []string{"client", "outside", "node"}
	if c.ipv6 && c.protocol == service.UDP {
		// Of the node's own datagrams over IPv6 that netfilter translates on their way
		// out, the kernel learns no path MTU (seen with 6.18).
		parties = parties[:2]
	}
	for name := range mirrors {
		c.apply(t, svc("web", 10), c.mirrorSlice(name))
		c.forgetFlows(t)
		for _, from := range parties {
			t.Run(fmt.Sprintf("from %s to %s", from, name), func(t *testing.T) {
				c.sendSizes(t, from)
				if name == "beyond" {
					c.wantPathMTU(t, from)
				}
			})
		}
	}
	c.apply(t, gone("web"), slice("web-1", "web"))
}

// sendSizes sends what a party has to send.
func (c *cluster) sendSizes(t *testing.T, from string) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	var conn net.Conn
	err := c.parties[from].Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, c.protocol.String(), c.web().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if c.protocol == service.TCP {
		stream(ctx, t, conn)
		return
	}
	for _, size := range []int{1, 1200, 1400, 1472, 1473, 4000, 20000, 65000} {
		datagram(ctx, t, conn, size)
	}
}

// addBeyond makes the host beyond, which goes with the test. Over TCP it says that it
// takes more than its link does, so that it is the path's MTU that decides.
func (c *cluster) addBeyond(t *testing.T) *netns.NS {
	t.Helper()
	host, gateway := netns.NewT(t), c.parties["gateway"]
	gateway.RunT(t, "sh", "-ec", fmt.Sprintf(`
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0
		ip link add beyond mtu %[1]d type veth peer name eth0 mtu %[1]d netns %[2]s
		ip addr add 198.18.0.1/24 dev beyond
		ip addr add fd00:18::1/64 dev beyond nodad
		ip link set dev beyond up`, beyondMTU, host.Path()))
	host.RunT(t, "sh", "-ec", fmt.Sprintf(`
		ip link set lo up
		ip addr add %s/24 dev eth0
		ip addr add %s/64 dev eth0 nodad
		ip link set dev eth0 up
		ip route add default via 198.18.0.1 advmss 1460
		ip route add default via fd00:18::1 advmss 1440`, beyond[0], beyond[1]))
	return host
}

// wantPathMTU looks whether a party has learned how large packets to the Service may be:
// or to the endpoint, where a socket is connected to that.
func (c *cluster) wantPathMTU(t *testing.T, from string) {
	t.Helper()
	var all string
	for _, to := range []netip.Addr{c.web().Addr(), c.mirrorAddr("beyond").Addr()} {
		out, err := c.parties[from].Output(t.Context(), "ip", "route", "get", to.String())
		if err != nil {
			t.Fatal(err)
		}
		all += out
	}
	if !strings.Contains(all, fmt.Sprintf("mtu %d", beyondMTU)) {
		t.Errorf("%s has not learned the path's MTU:\n%s", from, all)
	}
}

func (c *cluster) mirrorAddr(name string) netip.AddrPort {
	addr := beyond[b2i(c.ipv6)]
	if name != "beyond" {
		addr = c.addr(name)
	}
	return netip.AddrPortFrom(addr, mirrorPort)
}

func (c *cluster) mirrorSlice(name string) object {
	return func(v variant, u *service.Update) {
		u.Slices[named("web-1")] = &service.Slice{
			Name: named("web-1"), Service: "web",
			Ports:     []service.Port{{Protocol: v.protocol, Number: mirrorPort}},
			Endpoints: []service.Endpoint{{Addr: c.mirrorAddr(name).Addr(), Ready: true, Serving: true, Node: "n2"}},
		}
	}
}

// mirror sends back what it gets, until the test ends.
func (c *cluster) mirror(t *testing.T, ns *netns.NS, at netip.AddrPort) {
	t.Helper()
	var served sync.WaitGroup
	err := ns.Do(func() error {
		if c.protocol == service.UDP {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
			if err == nil {
				t.Cleanup(func() { _ = conn.Close(); served.Wait() })
				served.Go(func() { mirrorDatagrams(conn) })
			}
			return err
		}
		l, err := net.Listen("tcp", at.String())
		if err == nil {
			t.Cleanup(func() { _ = l.Close(); served.Wait() })
			served.Go(func() { mirrorStreams(l) })
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func mirrorDatagrams(conn *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(b[:n], from) // that one is lost will be seen
		}
	}
}

func mirrorStreams(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(conn, conn) // what is missing will be seen
			_ = conn.Close()
		}()
	}
}

// stream sends much and wants the same back.
func stream(ctx context.Context, t *testing.T, conn net.Conn) {
	t.Helper()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline) // of a socket that is open
	sent := random(streamed)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- err
	}()
	got := make([]byte, streamed)
	n, err := io.ReadFull(conn, got)
	if err != nil {
		_ = conn.Close()
		t.Fatalf("after %d of %d bytes: %v, writing: %v", n, streamed, err, <-wrote)
	}
	if err := <-wrote; err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what came back is not what was sent (%v)", err)
	}
}

// datagram wants back what it sends. It sends again when nothing comes: of a path whose
// MTU is not known yet the first is lost.
func datagram(ctx context.Context, t *testing.T, conn net.Conn, size int) {
	t.Helper()
	sent, got := random(size), make([]byte, 1<<16)
	for ctx.Err() == nil {
		if _, err := conn.Write(sent); err != nil {
			continue // the kernel has just learned that they are too many: EMSGSIZE
		}
		_ = conn.SetReadDeadline(time.Now().Add(silence)) // of a socket that is open
		for {
			n, err := conn.Read(got)
			if err != nil {
				break
			}
			if bytes.Equal(got[:n], sent) {
				return
			}
		}
	}
	t.Errorf("a datagram of %d bytes did not come back", size)
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{})
	_, _ = r.Read(b) // cannot fail
	return b
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
