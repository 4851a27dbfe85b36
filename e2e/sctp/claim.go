package sctp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

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

// claimPort takes addr, or says EADDRINUSE.
func claimPort(addr netip.AddrPort) (*claim, error) {
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
	err := control(c.name, func(fd int) error {
		return unix.Connect(fd, &unix.SockaddrUnix{Name: claimName(addr)})
	})
	return !errors.Is(err, unix.ECONNREFUSED)
}

func (c *claim) release() { _ = c.name.Close() }
