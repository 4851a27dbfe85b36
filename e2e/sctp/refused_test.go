package sctp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Whoever says no, Dial hears it at once and calls it by one name. (Without the
// answer these tests would hang: INIT is sent again for minutes.)
func TestRefused(t *testing.T) {
	refusals := []struct {
		name  string
		setup func(t *testing.T, l lan, at netip.Addr)
	}{
		{"ABORT: other port", func(t *testing.T, l lan, at netip.Addr) {
			listen(t, l.server, at, 10)
		}},
		{"ABORT: two listeners", func(t *testing.T, l lan, at netip.Addr) {
			listen(t, l.server, at, 10)
			listen(t, l.server, at, 11)
		}},
		{"ICMP: no SCTP at all", func(*testing.T, lan, netip.Addr) {}},
		{"ICMP: REJECT at the server", func(t *testing.T, l lan, at netip.Addr) {
			listen(t, l.server, at, 9)
			l.server.RunT(t, iptables(at), strings.Fields("-A INPUT -p sctp --dport 9 -j REJECT")...)
		}},
		{"ICMP: REJECT on the way out", func(t *testing.T, l lan, at netip.Addr) {
			listen(t, l.server, at, 9)
			l.client.RunT(t, iptables(at), strings.Fields("-A OUTPUT -p sctp --dport 9 -j REJECT")...)
		}},
	}
	for _, family := range families {
		for _, refusal := range refusals {
			t.Run(family.name+" "+refusal.name, func(t *testing.T) {
				t.Parallel()
				l := newLAN(t)
				refusal.setup(t, l, family.server)
				_, err := dial(t.Context(), l.client, netip.AddrPortFrom(family.server, 9))
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("dial returned %v", err)
				}
			})
		}
	}
}

func iptables(a netip.Addr) string {
	if a.Is4() {
		return "iptables"
	}
	return "ip6tables"
}

// A refusal is for one port: associations with the same host are not its concern,
// neither those that are up nor those that begin.
func TestRefusalIsForOnePort(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			server := listen(t, l.server, family.server, 10)
			go serveEcho(server)
			l.server.RunT(t, iptables(family.server), strings.Fields("-A INPUT -p sctp --dport 9 -j REJECT")...)
			before := dialT(t, l.client, portOf(server.Addr()))
			for range 3 { // fewer than the burst that the ICMP rate limit allows
				_, err := dial(t.Context(), l.client, netip.AddrPortFrom(family.server, 9))
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Fatalf("dial returned %v", err)
				}
				if err := echo(before, 100); err != nil {
					t.Fatal(err)
				}
				during := dialT(t, l.client, portOf(server.Addr()))
				if err := errors.Join(echo(during, 100), during.Close()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// An association that is up outlives an ICMP error about one of its packets.
func TestICMPDoesNotEndAssociation(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			server := listen(t, l.server, family.server, 9)
			go serveEcho(server)
			c := dialT(t, l.client, portOf(server.Addr()))
			once := "-A INPUT -p sctp --dport 9 -m statistic --mode nth --every 100000 --packet 0 -j REJECT"
			l.server.RunT(t, iptables(family.server), strings.Fields(once)...)
			if err := echo(c, 100); err != nil {
				t.Error(err)
			}
		})
	}
}

// All endpoints of a namespace see all packets, and each answers for its own.
func TestNeighboursInOneNamespace(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			first, second := listen(t, l.server, family.server, 9), listen(t, l.server, family.server, 10)
			go serveEcho(first)
			go serveEcho(second)
			for range 20 {
				a := dialT(t, l.server, portOf(first.Addr()))
				b := dialT(t, l.server, portOf(second.Addr()))
				if err := errors.Join(echo(a, 3000), echo(b, 3000), a.Close(), b.Close()); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestPortIsTakenOnce(t *testing.T) {
	l := newLAN(t)
	at := families[0].server
	first := listen(t, l.server, at, 9)
	err := l.server.Do(func() error {
		_, err := Listen(netip.AddrPortFrom(at, 9))
		return err
	})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("second listen returned %v", err)
	}
	listen(t, l.server, families[1].server, 9) // another address
	elsewhere := newLAN(t)
	listen(t, elsewhere.server, at, 9) // another namespace
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	listen(t, l.server, at, 9) // free again
}

// Only the peer ends an association: who does not know its tag is not heard.
func TestForgedAbort(t *testing.T) {
	needUserSpace(t)
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			client, server := pair(t, l, family.server)
			go func() { _, _ = io.Copy(server, server) }()
			near, far := client.(*conn).path, server.(*conn).path
			for _, row := range []struct {
				flags byte
				tag   uint32
			}{
				{0, near.localTag + 1},
				{0, near.peerTag},
				{flagReflected, near.localTag},
			} {
				send(t, l.server, near, bare(chunkAbort, row.flags, row.tag))
				if err := echo(client, 100); err != nil {
					t.Fatalf("after an ABORT with flags %d and tag %#x: %v", row.flags, row.tag, err)
				}
			}
			send(t, l.server, near, bare(chunkAbort, 0, near.localTag))
			send(t, l.client, far, bare(chunkAbort, 0, far.localTag))
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after an ABORT with the right tag, read returned %v", err)
			}
		})
	}
}

// send sends a packet to the near end of a path in the name of the far one.
func send(t *testing.T, from *netns.NS, p *path, out packet) {
	t.Helper()
	out.seal(p.remote.Port(), p.local.Port())
	err := from.Do(func() error {
		raw, err := net.DialIP(network(p.local.Addr()), ipAddr(p.remote.Addr()), ipAddr(p.local.Addr()))
		if err != nil {
			return err
		}
		defer func() { _ = raw.Close() }()
		_, err = raw.Write(out)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
