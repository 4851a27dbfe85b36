package sctp

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

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
	up(t,
		nic{l.client, "eth0", []string{"10.0.0.1/24", "fd00::1/64"}},
		nic{l.server, "eth0", []string{"10.0.0.2/24", "fd00::2/64"}},
	)
	return l
}

// nic is a link with its addresses.
type nic struct {
	ns    *netns.NS
	link  string
	addrs []string
}

// up sets links up and waits until they carry packets, which the kernel arranges
// in its own time: it learns by a work queue that the other end of a veth is up,
// and joins the multicast group by which an IPv6 address is found by another. A
// neighbour request that comes too early is repeated only a second later.
func up(t *testing.T, nics ...nic) {
	t.Helper()
	for _, n := range nics {
		n.ns.RunT(t, "ip", "link", "set", "lo", "up")
		// A router asks for neighbours from its link-local address.
		n.ns.RunT(t, "sysctl", "-qw", "net.ipv6.conf."+n.link+".accept_dad=0")
		n.ns.RunT(t, "ip", "link", "set", n.link, "up")
		for _, a := range n.addrs {
			n.ns.RunT(t, "ip", "addr", "add", a, "dev", n.link, "nodad")
		}
	}
	for _, n := range nics {
		for end := time.Now().Add(10 * time.Second); !n.ready(t); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("link %s is not up after 10 seconds", n.link)
			}
		}
	}
}

func (n nic) ready(t *testing.T) bool {
	t.Helper()
	if !strings.Contains(n.ns.RunT(t, "ip", "-brief", "link", "show", n.link), " UP ") {
		return false
	}
	groups := n.ns.RunT(t, "ip", "maddr", "show", "dev", n.link)
	for _, a := range n.addrs {
		addr := netip.MustParsePrefix(a).Addr()
		if addr.Is6() && !strings.Contains(groups, solicitedNode(addr)) {
			return false
		}
	}
	return true
}

// solicitedNode is the group of RFC 4291 section 2.7.1.
func solicitedNode(addr netip.Addr) string {
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	low := addr.As16()
	copy(group[13:], low[13:])
	return netip.AddrFrom16(group).String()
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

// needUserSpace skips a test of the association in user space where the kernel's
// own would answer beside it.
func needUserSpace(t *testing.T) {
	t.Helper()
	if kernelSpeaks() {
		t.Skip("the kernel has SCTP")
	}
}

func portOf(a net.Addr) netip.AddrPort { return a.(Addr).AddrPort() }
