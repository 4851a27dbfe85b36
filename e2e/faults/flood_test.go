package faults

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// synFlood has a pod and somebody outside send SYNs of connections that they never
// mean to use, from ports and addresses without number, to what others use.
func (c cluster) synFlood(t *testing.T) {
	c.Outside().RunT(t, "ip", "route", "replace", "blackhole", liars.String())
	tr := traffic.Start(t, c.sources...)
	for _, from := range c.sources {
		flood(t, from.NS, unix.IPPROTO_TCP, first(from.To, "tcp"), size(3000, 150_000))
	}
	tr.GoOn(t)
	tr.End(t)
}

// tableFull has more flows begin than the table of flows holds. Those that are in
// use stay in it.
func (c cluster) tableFull(t *testing.T) {
	if c.mode != "ebpf" {
		t.Skip("the table of flows is the kernel's own")
	}
	const flows = 4000
	c.Restart(t, c.Nodes[0], unix.SIGTERM, "ebpf", "--map-size", "flows=4000")
	c.Outside().RunT(t, "ip", "route", "replace", "blackhole", liars.String())
	tr := traffic.Start(t, c.sources...)
	flood(t, c.Outside(), unix.IPPROTO_UDP, first(c.sources[1].To, "udp"), size(3*flows, 150_000))
	tr.GoOn(t)
	tr.End(t)
}

// liars are the addresses that floods come from: nobody has them.
var liars = netip.MustParsePrefix("10.99.0.0/16")

func first(endpoints []echo.Endpoint, network string) netip.AddrPort {
	for _, e := range endpoints {
		if e.Network == network && e.Addr.Addr().Is4() {
			return e.Addr
		}
	}
	return netip.AddrPort{}
}

// perSecond is how many packets a flood has: more would show how fast this machine is.
const perSecond = 5000

// flood sends so many packets, each of a new flow, from a namespace.
func flood(t *testing.T, ns *netns.NS, protocol byte, to netip.AddrPort, count int) {
	t.Helper()
	fd := rawSocket(t, ns)
	defer func() { _ = unix.Close(fd) }()
	const burst = perSecond / 100
	for sent := 0; sent < count; {
		time.Sleep(10 * time.Millisecond)
		for range burst {
			err := unix.Sendto(fd, liar(protocol, to), 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
			if err == nil {
				sent++
			} else if !errors.Is(err, unix.ENOBUFS) {
				t.Fatal(err)
			}
		}
	}
}

// rawSocket sends packets as they are given, IP header and all.
func rawSocket(t *testing.T, ns *netns.NS) (fd int) {
	t.Helper()
	err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// liar is the first packet of a flow that nobody began. Its checksums are right.
func liar(protocol byte, to netip.AddrPort) []byte {
	from := liars.Addr().As4()
	binary.BigEndian.PutUint16(from[2:], uint16(rand.Uint32()))
	dst := to.Addr().As4()
	transport := make([]byte, 8)
	if protocol == unix.IPPROTO_TCP {
		transport = make([]byte, 20)
		binary.BigEndian.PutUint32(transport[4:], rand.Uint32())
		transport[12], transport[13] = 5<<4, 2 // SYN
		binary.BigEndian.PutUint16(transport[14:], 65535)
	} else {
		binary.BigEndian.PutUint16(transport[4:], 8)
	}
	binary.BigEndian.PutUint16(transport, uint16(1024+rand.IntN(60000)))
	binary.BigEndian.PutUint16(transport[2:], to.Port())
	return datagram(protocol, from, dst, transport)
}

// datagram is an IPv4 packet with that transport header, whose checksum it fills in.
func datagram(protocol byte, from, to [4]byte, transport []byte) []byte {
	p := make([]byte, 20, 20+len(transport))
	p[0], p[8], p[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(transport)))
	copy(p[12:], from[:])
	copy(p[16:], to[:])
	binary.BigEndian.PutUint16(p[10:], ^sum(p))
	pseudo := append(p[12:20:20], 0, protocol, 0, byte(len(transport)))
	at := map[byte]int{unix.IPPROTO_TCP: 16, unix.IPPROTO_UDP: 6}[protocol]
	binary.BigEndian.PutUint16(transport[at:], ^sum(append(pseudo, transport...)))
	return append(p, transport...)
}

// sum is the ones' complement sum of RFC 1071.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 > 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}
