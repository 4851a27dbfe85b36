package sctp

import (
	"errors"
	"net"
	"net/netip"

	"github.com/ishidawataru/sctp"
)

// Package net takes any stream socket for one of TCP. Reading, writing, accepting,
// deadlines and Close are the same; the kernel has no TCP options for it, which
// package net does not mind; and the names of things are put right here.

type kernelListener struct{ net.Listener }

// Accept passes over associations that have ended before anybody came to it: nobody knows
// any more with whom they were.
func (l kernelListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, renamed(err)
		}
		if remote := conn.RemoteAddr(); remote != nil {
			return kernelConn{conn, addrOf(remote)}, nil
		}
		_ = conn.Close()
	}
}

func (l kernelListener) Addr() net.Addr { return addrOf(l.Listener.Addr()) }

// kernelConn is a socket of the kernel. Its Close starts the shutdown, which the
// kernel finishes.
type kernelConn struct {
	net.Conn
	remote Addr // the socket forgets it when the association ends
}

func (c kernelConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	return n, renamed(err)
}

func (c kernelConn) Write(b []byte) (int, error) {
	n, err := writeMessages(b, c.Conn.Write)
	return n, renamed(err)
}

func (c kernelConn) LocalAddr() net.Addr  { return addrOf(c.Conn.LocalAddr()) }
func (c kernelConn) RemoteAddr() net.Addr { return c.remote }

func renamed(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		op.Net = Addr{}.Network()
	}
	return err
}

func addrOf(a net.Addr) Addr { return Addr(unmap(a.(*net.TCPAddr).AddrPort())) }

func sctpAddr(a netip.AddrPort) *sctp.SCTPAddr {
	return &sctp.SCTPAddr{IPAddrs: []net.IPAddr{*ipAddr(a.Addr())}, Port: int(a.Port())}
}
