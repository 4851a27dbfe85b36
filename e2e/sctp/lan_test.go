package sctp

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// lan is two namespaces joined by a veth:
//
//	client 10.0.0.1/24 fd00::1/64 ── 10.0.0.2/24 fd00::2/64 server
type lan struct {
	client, server *netns.NS
}

// families are the server's address in each family: the rows of most tests.
var families = []struct {
	name   string
	server netip.Addr
}{
	{"IPv4", netip.MustParseAddr("10.0.0.2")},
	{"IPv6", netip.MustParseAddr("fd00::2")},
}

func newLAN(t *testing.T) lan {
	t.Helper()
	l := lan{client: netns.NewT(t), server: netns.NewT(t)}
	l.client.RunT(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", l.server.Path())
	up(t, l.client, "eth0", "10.0.0.1/24", "fd00::1/64")
	up(t, l.server, "eth0", "10.0.0.2/24", "fd00::2/64")
	return l
}

// up sets a link and lo up, with addresses that may be used at once.
func up(t *testing.T, ns *netns.NS, link string, addrs ...string) {
	t.Helper()
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	ns.RunT(t, "ip", "link", "set", link, "up")
	for _, a := range addrs {
		ns.RunT(t, "ip", "addr", "add", a, "dev", link, "nodad")
	}
}

// listen is Listen inside a namespace, closed when the test ends.
func listen(t *testing.T, ns *netns.NS, addr netip.Addr, port uint16) net.Listener {
	t.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = Listen(netip.AddrPortFrom(addr, port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// dial is Dial inside a namespace.
func dial(ctx context.Context, ns *netns.NS, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = Dial(ctx, netip.AddrPort{}, to)
		return err
	})
	return c, err
}

// dialT is dial for a connection that must succeed.
func dialT(t *testing.T, ns *netns.NS, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := dial(t.Context(), ns, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func portOf(a net.Addr) netip.AddrPort { return a.(Addr).AddrPort() }
