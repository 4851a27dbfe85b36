package sctp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ishidawataru/sctp"
	"golang.org/x/sys/unix"
)

// The kernel's associations are sockets of one-to-one style (RFC 6458 section 4).
// The library's own Dial, Read and Accept wait inside a system call, where no
// context, deadline or Close reaches them; so its calls are made on descriptors
// that do not block, and package net waits (kernelconn.go).

func dialKernel(ctx context.Context, laddr, raddr netip.AddrPort) (net.Conn, error) {
	local, err := sourceFor(laddr, raddr)
	if err != nil {
		return nil, err
	}
	socket, err := onPort(local, newSocket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = socket.Close() }()
	if err := connect(ctx, socket, raddr); err != nil {
		return nil, err
	}
	conn, err := net.FileConn(socket)
	if err != nil {
		return nil, err
	}
	return kernelConn{conn, Addr(raddr)}, nil
}

func listenKernel(laddr netip.AddrPort) (net.Listener, error) {
	socket, err := onPort(laddr, newSocket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = socket.Close() }()
	err = control(socket, func(fd int) error { return unix.Listen(fd, unix.SOMAXCONN) })
	if err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	listener, err := net.FileListener(socket)
	if err != nil {
		return nil, err
	}
	return kernelListener{listener}, nil
}

// sourceFor fills in the source address that the routes choose. A socket that
// is not bound to one address would offer all of them to the peer.
func sourceFor(laddr, raddr netip.AddrPort) (netip.AddrPort, error) {
	if laddr.Addr().IsValid() && !laddr.Addr().IsUnspecified() {
		return laddr, nil
	}
	probe, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(raddr)) // sends nothing
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = probe.Close() }()
	source := probe.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return netip.AddrPortFrom(source, laddr.Port()), nil
}

// newSocket makes a socket that is bound to local and does not block.
func newSocket(local netip.AddrPort) (*os.File, error) {
	family := unix.AF_INET6
	if local.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_SCTP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	socket := os.NewFile(uintptr(fd), "sctp")
	err = errors.Join(
		// A small message is sent at once. What Accept returns inherits it.
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, sctp.SOL_SCTP, sctp.SCTP_NODELAY, 1)),
		os.NewSyscallError("bind", sctp.SCTPBind(fd, sctpAddr(local), sctp.SCTP_BINDX_ADD_ADDR)),
	)
	if err != nil {
		_ = socket.Close()
		return nil, err
	}
	return socket, nil
}

// connect sends an INIT and waits until the peer has taken part in the handshake.
func connect(ctx context.Context, socket *os.File, remote netip.AddrPort) error {
	err := control(socket, func(fd int) error {
		if err := reportErrors(fd, remote.Addr(), 1); err != nil {
			return err
		}
		_, err := sctp.SCTPConnect(fd, sctpAddr(remote))
		return err
	})
	if !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = socket.SetWriteDeadline(time.Unix(1, 0)) })
	err = awaitPeer(socket)
	if !stop() {
		return ctx.Err()
	}
	if err != nil {
		return os.NewSyscallError("connect", err)
	}
	return control(socket, func(fd int) error { return reportErrors(fd, remote.Addr(), 0) })
}

// reportErrors makes an ICMP error end the socket's work, if on is 1. While
// connecting that is wanted: SCTP would take "port unreachable" for a passing
// fault and send its INIT again. Later it is not.
func reportErrors(fd int, remote netip.Addr, on int) error {
	if remote.Is4() {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, on)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, on)
}

// awaitPeer waits until a connect in progress has come to its end. The poller may
// wake for no reason, so only a peer's name proves the connection.
func awaitPeer(socket *os.File) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Write(func(fd uintptr) bool {
		var code int
		code, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if code != 0 {
			err = unix.Errno(code)
		}
		if err == nil {
			_, err = unix.Getpeername(int(fd))
		}
		return !errors.Is(err, unix.ENOTCONN)
	})
	return errors.Join(failed, err)
}
