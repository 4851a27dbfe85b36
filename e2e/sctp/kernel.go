package sctp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// kernel makes one-to-one style sockets (RFC 6458 section 4), which take the
// calls of TCP sockets. The tests use that: they run this code with TCP where
// the kernel has no SCTP. The runtime's poller, by os.File, gives deadlines and
// a Close that wakes readers.
type kernel struct{ protocol int }

// sctpNoDelay is SCTP_NODELAY of linux/sctp.h: a small message is sent at once.
const sctpNoDelay = 3

func (k kernel) socket(addr netip.Addr) (*os.File, error) {
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, k.protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if k.protocol == unix.IPPROTO_SCTP {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_SCTP, sctpNoDelay, 1); err != nil {
			_ = unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewFile(uintptr(fd), "sctp"), nil
}

func (k kernel) dial(ctx context.Context, laddr, raddr netip.AddrPort) (net.Conn, error) {
	local, err := sourceFor(laddr, raddr)
	if err != nil {
		return nil, err
	}
	file, err := k.socket(raddr.Addr())
	if err != nil {
		return nil, err
	}
	if err := connect(ctx, file, local, raddr); err != nil {
		_ = file.Close()
		return nil, err
	}
	return newKernelConn(file, raddr)
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
	defer probe.Close()
	source := probe.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return netip.AddrPortFrom(source, laddr.Port()), nil
}

// connect binds, connects and waits until the peer has answered.
func connect(ctx context.Context, file *os.File, local, remote netip.AddrPort) error {
	var err error
	failed := control(file, func(fd int) { err = startConnect(fd, local, remote) })
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = file.SetWriteDeadline(time.Unix(1, 0)) })
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	failed = raw.Write(func(fd uintptr) bool {
		var connected bool
		connected, err = connectResult(int(fd))
		if connected {
			err = reportErrors(int(fd), remote.Addr(), false)
		}
		return connected || err != nil
	})
	if !stop() {
		return ctx.Err()
	}
	return errors.Join(failed, err)
}

func startConnect(fd int, local, remote netip.AddrPort) error {
	if err := unix.Bind(fd, sockaddr(local)); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := reportErrors(fd, remote.Addr(), true); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(remote)); !errors.Is(err, unix.EINPROGRESS) {
		return os.NewSyscallError("connect", err)
	}
	return nil
}

// reportErrors makes an ICMP error end the socket's work. While connecting that
// is wanted: SCTP would take "port unreachable" for a passing fault and send its
// INIT again. Later it is not.
func reportErrors(fd int, remote netip.Addr, on bool) error {
	level, option := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if remote.Is4() {
		level, option = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	value := 0
	if on {
		value = 1
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, option, value))
}

// connectResult says how a connect in progress stands. The poller may wake for
// no reason, so only a peer's name proves the connection.
func connectResult(fd int) (connected bool, err error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return false, os.NewSyscallError("getsockopt", err)
	}
	if code != 0 {
		return false, os.NewSyscallError("connect", unix.Errno(code))
	}
	_, err = unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return false, nil
	}
	return err == nil, os.NewSyscallError("getpeername", err)
}

func (k kernel) listen(laddr netip.AddrPort) (net.Listener, error) {
	file, err := k.socket(laddr.Addr())
	if err != nil {
		return nil, err
	}
	var local netip.AddrPort
	failed := control(file, func(fd int) {
		if err = unix.Bind(fd, sockaddr(laddr)); err != nil {
			err = os.NewSyscallError("bind", err)
			return
		}
		if err = unix.Listen(fd, unix.SOMAXCONN); err != nil {
			err = os.NewSyscallError("listen", err)
			return
		}
		local, err = localAddr(fd)
	})
	if err = errors.Join(failed, err); err != nil {
		_ = file.Close()
		return nil, err
	}
	return &kernelListener{file: file, local: Addr(local)}, nil
}

func localAddr(fd int) (netip.AddrPort, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	return addrPort(name), nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(name unix.Sockaddr) netip.AddrPort {
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port))
	}
	return netip.AddrPort{}
}
