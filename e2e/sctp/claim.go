package sctp

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// claim holds one address and port of a network namespace for user-space SCTP.
//
// A kernel without SCTP has no table of SCTP ports, and every raw socket sees
// every packet, so the endpoints of all processes in a namespace must agree on
// who owns what. The table is made of abstract unix sockets: their names belong
// to the network namespace, one socket at a time can bear one, and the kernel
// takes it back from a process that dies.
type claim struct {
	addr netip.AddrPort
	name *net.UnixConn
}

// The ephemeral ports: Linux's default of net.ipv4.ip_local_port_range.
const (
	firstEphemeral = 32768
	ephemeralPorts = 60999 - firstEphemeral + 1
)

// claimPort takes addr, or if its port is 0 the next ephemeral port that is free.
func claimPort(addr netip.AddrPort) (*claim, error) {
	if addr.Port() != 0 {
		return claimExact(addr)
	}
	for range ephemeralPorts {
		c, err := claimExact(netip.AddrPortFrom(addr.Addr(), nextPort()))
		if !errors.Is(err, unix.EADDRINUSE) {
			return c, err
		}
	}
	return nil, fmt.Errorf("claim an ephemeral port of %s: %w", addr.Addr(), unix.EADDRNOTAVAIL)
}

func claimExact(addr netip.AddrPort) (*claim, error) {
	name, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: claimName(addr), Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("claim sctp %s: %w", addr, err)
	}
	return &claim{addr: addr, name: name}, nil
}

// claimName is an abstract socket name: "@" stands for the leading zero byte.
func claimName(addr netip.AddrPort) string { return "@fairlead/sctp/" + addr.String() }

// sees says whether any endpoint of the namespace holds addr. Connecting to a
// name tells: nobody has it if the connection is refused.
func (c *claim) sees(addr netip.AddrPort) bool {
	var err error
	failed := control(c.name, func(fd int) {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: claimName(addr)})
	})
	return failed == nil && !errors.Is(err, unix.ECONNREFUSED)
}

func (c *claim) release() { _ = c.name.Close() }

// nextPort walks the ephemeral range. A port comes back only after all others
// had their turn: conntrack remembers a finished association for some seconds
// and would lead a new one with the same ports to the same backend, whatever the
// round robin says. Each process starts somewhere else, so that two in one
// namespace rarely meet.
func nextPort() uint16 {
	return firstEphemeral + uint16((walkStart+walked.Add(1))%ephemeralPorts)
}

var (
	walkStart = rand.Uint32N(ephemeralPorts)
	walked    atomic.Uint32
)
