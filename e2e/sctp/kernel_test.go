package sctp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel of a CI machine has no SCTP as a rule. One-to-one style sockets of
// SCTP take the calls of TCP sockets, so these tests run the code with TCP: what
// they prove is the handling of sockets, addresses, waiting and errors.
var byTCP = kernel{unix.IPPROTO_TCP}

func kernelListen(t *testing.T, l lan, addr netip.Addr) net.Listener {
	t.Helper()
	var listener net.Listener
	err := l.server.Do(func() (err error) {
		listener, err = byTCP.listen(netip.AddrPortFrom(addr, 0))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func kernelDial(ctx context.Context, l lan, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := l.client.Do(func() (err error) {
		c, err = byTCP.dial(ctx, netip.AddrPort{}, to)
		return err
	})
	return c, err
}

func TestKernelConnection(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			listener := kernelListen(t, l, family.server)
			client, err := kernelDial(t.Context(), l, portOf(listener.Addr()))
			if err != nil {
				t.Fatal(err)
			}
			server, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if client.RemoteAddr() != server.LocalAddr() || server.RemoteAddr() != client.LocalAddr() {
				t.Errorf("the client speaks of %s and %s, the server of %s and %s",
					client.LocalAddr(), client.RemoteAddr(), server.LocalAddr(), server.RemoteAddr())
			}
			go func() {
				defer server.Close()
				_, _ = io.Copy(server, io.LimitReader(server, 100_000))
			}()
			if err := echo(client, 100_000); err != nil {
				t.Error(err)
			}
			if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("after the server closed, read returned %d, %v", n, err)
			}
			if err := client.Close(); err != nil {
				t.Error(err)
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after close: %v", err)
			}
			if err := listener.Close(); err != nil {
				t.Error(err)
			}
			if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("accept after close: %v", err)
			}
		})
	}
}

func TestKernelDeadline(t *testing.T) {
	l := newLAN(t)
	listener := kernelListen(t, l, families[0].server)
	client, err := kernelDial(t.Context(), l, portOf(listener.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read returned %v", err)
	}
}

func TestKernelDialFails(t *testing.T) {
	for _, row := range []struct {
		name   string
		rule   string // in the server's INPUT chain
		within time.Duration
		want   error
	}{
		{"nobody listens", "", time.Minute, syscall.ECONNREFUSED},
		{"port unreachable", "-A INPUT -p tcp -j REJECT", time.Minute, syscall.ECONNREFUSED},
		{"no answer", "-A INPUT -p tcp -j DROP", 50 * time.Millisecond, context.DeadlineExceeded},
	} {
		for _, family := range families {
			t.Run(row.name+" "+family.name, func(t *testing.T) {
				l := newLAN(t)
				if row.rule != "" {
					l.server.RunT(t, iptables(family.server), strings.Fields(row.rule)...)
				}
				ctx, cancel := context.WithTimeout(t.Context(), row.within)
				defer cancel()
				_, err := kernelDial(ctx, l, netip.AddrPortFrom(family.server, 9))
				if !errors.Is(err, row.want) {
					t.Errorf("dial returned %v, want %v", err, row.want)
				}
			})
		}
	}
}
