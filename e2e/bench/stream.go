package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/bench/load"
	"github.com/fairlead/fairlead/e2e/netns"
)

// path is one over which streams are sent, from an address in one namespace to one in
// another.
type path struct {
	name     string
	from, to *netns.NS
	src, dst netip.Addr
}

// streamTimeout is how long a stream may stand still.
const streamTimeout = time.Minute

// rate opens a TCP connection and sends for d, after a quarter of that for the window to
// open, and returns 10^9 bits a second, as they came. Each time it is another connection,
// so that what the kernel has made of one, its window and buffers, is in no figure for
// long.
//
// That the receiver sees src is looked at: a path that hides who sends is none.
func (p path) rate(ctx context.Context, d time.Duration) (float64, error) {
	near, far, err := p.connect(ctx)
	if err != nil {
		return 0, fmt.Errorf("connect %s with %s: %w", p.src, p.dst, err)
	}
	var came atomic.Int64
	swallowed := make(chan error, 1)
	go func() {
		swallowed <- calmly(func() error { return swallow(far, &came) })
	}()
	var rate float64
	err = calmly(func() (err error) {
		rate, err = send(near, d, &came)
		return err
	})
	// The receiver ends when near is closed.
	if err := errors.Join(err, unix.Close(near), <-swallowed, unix.Close(far)); err != nil {
		return 0, fmt.Errorf("send from %s to %s: %w", p.src, p.dst, err)
	}
	return rate, nil
}

// connect returns both ends of a connection, as blocking sockets.
func (p path) connect(ctx context.Context) (near, far int, err error) {
	var l *net.TCPListener
	err = p.to.Do(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.dst, 0)))
		return err
	})
	if err != nil {
		return -1, -1, err
	}
	defer func() { _ = l.Close() }()
	var begins *net.TCPConn
	err = p.from.Do(func() (err error) {
		begins, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPort{}, l.Addr().(*net.TCPAddr).AddrPort())
		return err
	})
	if err != nil {
		return -1, -1, err
	}
	defer func() { _ = begins.Close() }()
	accepted, err := l.AcceptTCP()
	if err != nil {
		return -1, -1, err
	}
	defer func() { _ = accepted.Close() }()
	if saw := accepted.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(); saw != p.src {
		return -1, -1, fmt.Errorf("%s saw %s instead", p.dst, saw)
	}
	if near, err = blocking(begins); err != nil {
		return -1, -1, err
	}
	if far, err = blocking(accepted); err != nil {
		return -1, -1, errors.Join(err, unix.Close(near))
	}
	return near, far, nil
}

// blocking is another descriptor of a connection, for calls that wait in the kernel.
func blocking(c *net.TCPConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if controlErr := raw.Control(func(had uintptr) { fd, err = unix.FcntlInt(had, unix.F_DUPFD_CLOEXEC, 0) }); controlErr != nil {
		return -1, controlErr
	}
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(streamTimeout.Nanoseconds())
	return fd, errors.Join(
		unix.SetNonblock(fd, false),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout))
}

// calmly calls f as load.Calm has it. The goroutine's thread ends with it.
func calmly(f func() error) error {
	done := make(chan error)
	go func() {
		err := load.Calm()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

const chunk = 256 << 10

func send(fd int, d time.Duration, came *atomic.Int64) (float64, error) {
	buf := make([]byte, chunk)
	write := func(d time.Duration) error {
		for began := time.Now(); time.Since(began) < d; {
			if _, err := unix.Write(fd, buf); err != nil && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
		return nil
	}
	if err := write(d / 4); err != nil {
		return 0, err
	}
	before, began := came.Load(), time.Now()
	err := write(d)
	return 8 * float64(came.Load()-before) / time.Since(began).Seconds() / 1e9, err
}

// swallow reads to the end and counts.
func swallow(fd int, came *atomic.Int64) error {
	for buf := make([]byte, chunk); ; {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return nil
		default:
			came.Add(int64(n))
		}
	}
}
