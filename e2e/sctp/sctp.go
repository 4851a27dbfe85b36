// Package sctp gives SCTP endpoints to the tests and to the lab: one API over
// two implementations.
//
// A kernel that has SCTP does the work itself (kernel.go). Where socket(2) says
// that it does not know the protocol, as on most CI machines, the association
// runs in this process over raw IP protocol 132 (dial.go, listen.go). Both are
// the same on the wire, so that netfilter tracks and translates them alike.
//
//	Dial ──┬─ kernel: one socket
//	       └─ user space: conn ── pion/sctp ── path ── raw socket, connected
//	Listen ┬─ kernel: one socket                          per association
//	       └─ user space: conn ── pion/sctp ── path ─┬─ raw socket, one for the
//	                      conn ── pion/sctp ── path ─┘  listener and its associations
//
// A connection is a stream of bytes, as net.Conn promises: the borders of SCTP
// messages are not kept, and only SCTP stream 0 is used. An association has one
// address at each end, because address translation cannot follow more.
//
// Close waits in user space until the peer has agreed, and returns ETIMEDOUT if it
// does not; the kernel goes through the shutdown without the caller.
//
// User space sends no heartbeats: an end that only reads never learns that its peer
// was killed, and should read with a deadline. Nor does it refuse for an address
// at which nobody listens on any port: there the kernel says "protocol unreachable",
// and only while its namespace has no other SCTP socket.
//
// Every socket is made on the thread of the caller, which may be inside a
// network namespace (see e2e/netns), and stays in that namespace.
package sctp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// Addr is an SCTP address: what LocalAddr, RemoteAddr and Listener.Addr return.
type Addr netip.AddrPort

// Network is the word that package net would use.
func (Addr) Network() string { return "sctp" }

func (a Addr) String() string { return a.AddrPort().String() }

// AddrPort is named like the method of net.TCPAddr and net.UDPAddr.
func (a Addr) AddrPort() netip.AddrPort { return netip.AddrPort(a) }

// Dial opens an association with raddr. The zero laddr, or a part of it, lets
// the routes choose the address and the ephemeral range the port.
//
// It waits for the association or for the end of ctx. Whether the far side
// refuses by ABORT or a firewall by ICMP, the error is ECONNREFUSED for
// errors.Is.
func Dial(ctx context.Context, laddr, raddr netip.AddrPort) (net.Conn, error) {
	dial := dialUser
	if kernelSpeaks() {
		dial = dialKernel
	}
	conn, err := dial(ctx, unmap(laddr), unmap(raddr))
	if err != nil {
		return nil, fmt.Errorf("dial sctp %s: %w", raddr, err)
	}
	return conn, nil
}

// Listen accepts associations at laddr, which must name one address; port 0 lets
// the ephemeral range choose. As long as the listener lives, its address answers
// packets for SCTP ports that nobody holds with ABORT.
func Listen(laddr netip.AddrPort) (net.Listener, error) {
	if !laddr.Addr().IsValid() || laddr.Addr().IsUnspecified() {
		return nil, fmt.Errorf("listen sctp %s: %w", laddr, errOneAddress)
	}
	listen := listenUser
	if kernelSpeaks() {
		listen = listenKernel
	}
	listener, err := listen(unmap(laddr))
	if err != nil {
		return nil, fmt.Errorf("listen sctp %s: %w", laddr, err)
	}
	return listener, nil
}

// An association that is offered at every address of the host tells the peer all
// of them, and the peer would then go around the translated one.
var errOneAddress = errors.New("an endpoint needs one address of its own")

// unmap gives an IPv4 address that wears its IPv6 form its own.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Implementation says in a log who does the work.
func Implementation() string {
	if kernelSpeaks() {
		return "kernel"
	}
	return "user space over raw IP"
}

// kernelSpeaks is asked once: on a kernel without SCTP each socket(2) would
// start modprobe again.
var kernelSpeaks = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return false
	}
	_ = unix.Close(fd)
	return true
})
