package sctp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// kernelListener accepts by the runtime's poller.
type kernelListener struct {
	file   *os.File
	local  Addr
	closed atomic.Bool
}

func (l *kernelListener) Accept() (net.Conn, error) {
	fd, peer, err := l.accept()
	if err != nil {
		if l.closed.Load() {
			err = net.ErrClosed // the poller has an error of its own for it
		}
		return nil, &net.OpError{Op: "accept", Net: "sctp", Addr: l.local, Err: err}
	}
	return newKernelConn(os.NewFile(uintptr(fd), "sctp"), addrPort(peer))
}

func (l *kernelListener) accept() (fd int, peer unix.Sockaddr, err error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	failed := raw.Read(func(listening uintptr) bool {
		fd, peer, err = unix.Accept4(int(listening), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return !errors.Is(err, unix.EAGAIN)
	})
	return fd, peer, errors.Join(failed, os.NewSyscallError("accept4", err))
}

func (l *kernelListener) Close() error {
	l.closed.Store(true)
	return l.file.Close()
}

func (l *kernelListener) Addr() net.Addr { return l.local }

// kernelConn is a socket of the kernel. Its Close starts the shutdown, which the
// kernel finishes.
type kernelConn struct {
	file          *os.File
	local, remote Addr
}

func newKernelConn(file *os.File, remote netip.AddrPort) (net.Conn, error) {
	var local netip.AddrPort
	var err error
	failed := control(file, func(fd int) { local, err = localAddr(fd) })
	if err = errors.Join(failed, err); err != nil {
		_ = file.Close()
		return nil, err
	}
	return &kernelConn{file: file, local: Addr(local), remote: Addr(remote)}, nil
}

func (c *kernelConn) Read(b []byte) (int, error) {
	n, err := c.file.Read(b)
	return n, c.failed("read", err)
}

func (c *kernelConn) Write(b []byte) (int, error) {
	n, err := c.file.Write(b)
	return n, c.failed("write", err)
}

// failed speaks of errors as package net does, not as package os.
func (c *kernelConn) failed(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if path, ok := errors.AsType[*os.PathError](err); ok {
		err = path.Err
	}
	if errors.Is(err, os.ErrClosed) {
		err = net.ErrClosed
	}
	return &net.OpError{Op: op, Net: "sctp", Source: c.local, Addr: c.remote, Err: err}
}

func (c *kernelConn) Close() error                       { return c.failed("close", c.file.Close()) }
func (c *kernelConn) LocalAddr() net.Addr                { return c.local }
func (c *kernelConn) RemoteAddr() net.Addr               { return c.remote }
func (c *kernelConn) SetDeadline(t time.Time) error      { return c.file.SetDeadline(t) }
func (c *kernelConn) SetReadDeadline(t time.Time) error  { return c.file.SetReadDeadline(t) }
func (c *kernelConn) SetWriteDeadline(t time.Time) error { return c.file.SetWriteDeadline(t) }
