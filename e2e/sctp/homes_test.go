package sctp

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/ishidawataru/sctp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Of an association with several addresses only one path is translated. This is what
// becomes of it when HEARTBEAT goes along the others, some seconds later: docs/packets.md.
func TestSeveralAddresses(t *testing.T) {
	if !kernelSpeaks() {
		t.Skip("the kernel has no SCTP, whose sockets alone have several addresses")
	}
	for _, tt := range []struct {
		name           string
		client, server []string
		port           uint16 // of the server; that of the virtual IP is 9
		ends           bool
	}{
		{"server, at the same port", []string{"10.1.0.1"}, []string{"10.2.0.1", "10.2.0.11"}, 9, false},
		{"server, at another port", []string{"10.1.0.1"}, []string{"10.2.0.1", "10.2.0.11"}, 7777, true},
		{"client", []string{"10.1.0.1", "10.1.0.11"}, []string{"10.2.0.1"}, 9, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			plan := natPlans[0]
			plan.backend = netip.AddrPortFrom(netip.MustParseAddr(plan.server), tt.port).String()
			client, _, server := plan.build(t)
			client.RunT(t, "ip", "addr", "add", "10.1.0.11/24", "dev", "eth0")
			server.RunT(t, "ip", "addr", "add", "10.2.0.11/24", "dev", "eth0")
			stop := echoOnce(listenAt(t, server, tt.port, tt.server...))
			defer stop()
			c := dialFrom(t, client, netip.MustParseAddrPort(plan.vip), tt.client...)
			err := converse(c, 15)
			if ended := errors.Is(err, syscall.ECONNRESET); ended != tt.ends || err != nil && !ended {
				t.Errorf("%v; reset wanted: %v", err, tt.ends)
			}
		})
	}
}

// echoOnce serves one association until stop, which may not hear of its end.
func echoOnce(l net.Listener) (stop func()) {
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		if c, err := l.Accept(); err == nil {
			accepted <- c
			_, _ = io.Copy(c, c)
		}
	}()
	return func() {
		_ = l.Close()
		if c, ok := <-accepted; ok {
			_ = c.Close()
		}
	}
}

// converse sends something each second, and wants it back.
func converse(c net.Conn, seconds int) error {
	for range seconds {
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return err
		}
		if err := echo(c, 100); err != nil {
			return err
		}
		time.Sleep(time.Second)
	}
	return nil
}

func listenAt(t *testing.T, ns *netns.NS, port uint16, addrs ...string) net.Listener {
	t.Helper()
	socket := socketAt(t, ns, port, addrs)
	if err := control(socket, func(fd int) error { return unix.Listen(fd, 1) }); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return kernelListener{l}
}

func dialFrom(t *testing.T, ns *netns.NS, to netip.AddrPort, addrs ...string) net.Conn {
	t.Helper()
	const port = 4000
	socket := socketAt(t, ns, port, addrs)
	if err := connect(t.Context(), socket, to); err != nil {
		t.Fatal(err)
	}
	c, err := net.FileConn(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return kernelConn{c, Addr(to)}
}

// socketAt is a socket at several addresses.
func socketAt(t *testing.T, ns *netns.NS, port uint16, addrs []string) *os.File {
	t.Helper()
	var socket *os.File
	err := ns.Do(func() (err error) {
		socket, err = newSocket(netip.AddrPortFrom(netip.MustParseAddr(addrs[0]), port))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	for _, more := range addrs[1:] {
		at := netip.AddrPortFrom(netip.MustParseAddr(more), port)
		if err := control(socket, func(fd int) error { return sctp.SCTPBind(fd, sctpAddr(at), sctp.SCTP_BINDX_ADD_ADDR) }); err != nil {
			t.Fatal(err)
		}
	}
	return socket
}
