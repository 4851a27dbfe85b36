package sctp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// serveEcho sends everything back until the listener closes.
func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// echo sends size bytes and wants them back.
func echo(c net.Conn, size int) error {
	sent := bytes.Repeat([]byte{byte(size), 1, 2}, size/3+1)[:size]
	if n, err := c.Write(sent); n != size || err != nil {
		return fmt.Errorf("write %d bytes: wrote %d: %w", size, n, err)
	}
	got := make([]byte, size)
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read %d bytes: %w", size, err)
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came back changed", size)
	}
	return nil
}

func TestEcho(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			server := listen(t, l.server, family.server, 9)
			go serveEcho(server)
			c := dialT(t, l.client, portOf(server.Addr()))
			// 1163 and 1164 stand on both sides of what one packet holds.
			for _, size := range []int{1, 2, 1000, 1163, 1164, 20_000, 65_536, 65_537, 100_000} {
				if err := echo(c, size); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A write that no buffer holds arrives whole.
func TestLargeWrite(t *testing.T) {
	client, server := pair(t, newLAN(t), families[0].server)
	sent := make([]byte, 5_000_000)
	for i := range sent {
		sent[i] = byte(i % 251)
	}
	var writing errgroup.Group
	writing.Go(func() error {
		_, err := client.Write(sent)
		return errors.Join(err, client.Close())
	})
	got, err := io.ReadAll(server)
	if err := errors.Join(err, writing.Wait()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent) {
		t.Errorf("%d bytes arrived of %d, or others", len(got), len(sent))
	}
}

// A peer that closes what it accepts ends the association, not the dialling.
func TestPeerClosesAtOnce(t *testing.T) {
	l := newLAN(t)
	server := listen(t, l.server, families[0].server, 9)
	go func() {
		for c, err := server.Accept(); err == nil; c, err = server.Accept() {
			go c.Close()
		}
	}()
	for range 100 {
		c := dialT(t, l.client, portOf(server.Addr()))
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read returned %d, %v", n, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Two hundred associations, one after the other, come from as many ports.
func TestSequentialAssociations(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			server := listen(t, l.server, family.server, 9)
			go serveEcho(server)
			ports := map[netip.AddrPort]bool{}
			for range 200 {
				c := dialT(t, l.client, portOf(server.Addr()))
				if err := echo(c, 10); err != nil {
					t.Fatal(err)
				}
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				ports[portOf(c.LocalAddr())] = true
			}
			if len(ports) != 200 {
				t.Errorf("200 associations came from %d ports", len(ports))
			}
		})
	}
}

func TestParallelAssociations(t *testing.T) {
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			server := listen(t, l.server, family.server, 9)
			go serveEcho(server)
			var group errgroup.Group
			for range 50 {
				group.Go(func() error {
					c, err := dial(t.Context(), l.client, portOf(server.Addr()))
					if err != nil {
						return err
					}
					return errors.Join(echo(c, 10_000), c.Close())
				})
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// pair is both ends of a new association.
func pair(t *testing.T, l lan, addr netip.Addr) (client, server net.Conn) {
	t.Helper()
	listener := listen(t, l.server, addr, 0)
	client = dialT(t, l.client, portOf(listener.Addr()))
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return client, server
}

func TestAddresses(t *testing.T) {
	l := newLAN(t)
	for _, family := range families {
		client, server := pair(t, l, family.server)
		if got, want := client.RemoteAddr(), server.LocalAddr(); got != want {
			t.Errorf("%s: the client calls the server %s, the server itself %s", family.name, got, want)
		}
		if got, want := server.RemoteAddr(), client.LocalAddr(); got != want {
			t.Errorf("%s: the server calls the client %s, the client itself %s", family.name, got, want)
		}
		if got := client.LocalAddr().Network(); got != "sctp" {
			t.Errorf("%s: network %q", family.name, got)
		}
	}
}

// Whoever closes, everything written before arrives, then the end.
func TestClose(t *testing.T) {
	for _, family := range families {
		for _, closer := range []string{"client", "server", "both"} {
			t.Run(family.name+" "+closer, func(t *testing.T) {
				t.Parallel()
				client, server := pair(t, newLAN(t), family.server)
				first, second := client, server
				if closer == "server" {
					first, second = server, client
				}
				const size = 50_000
				if _, err := first.Write(make([]byte, size)); err != nil {
					t.Fatal(err)
				}
				var group errgroup.Group
				group.Go(first.Close)
				if closer == "both" {
					group.Go(second.Close)
				} else if got, err := io.ReadAll(second); len(got) != size || err != nil {
					t.Errorf("read %d bytes, %v; want %d and the end", len(got), err, size)
				}
				if err := group.Wait(); err != nil {
					t.Errorf("close: %v", err)
				}
				if closer != "both" {
					if err := second.Close(); err != nil {
						t.Errorf("close after the peer: %v", err)
					}
				}
				if _, err := first.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("read after close: %v", err)
				}
				if _, err := first.Write(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("write after close: %v", err)
				}
			})
		}
	}
}

// Close wakes a Read of the same connection.
func TestCloseWakesReader(t *testing.T) {
	client, _ := pair(t, newLAN(t), families[0].server)
	read := make(chan error)
	go func() {
		_, err := client.Read(make([]byte, 1))
		read <- err
	}()
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read returned %v", err)
	}
}

func TestReadDeadline(t *testing.T) {
	client, server := pair(t, newLAN(t), families[0].server)
	if err := client.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read returned %v", err)
	}
	if err := client.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(make([]byte, 1)); err != nil {
		t.Errorf("read after the deadline was lifted: %v", err)
	}
	// One that is far away does not outlive the connection: see TestMain.
	if err := client.SetReadDeadline(time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
}

// A closed listener refuses new associations, and those it accepted go on.
func TestListenerCloseKeepsAssociations(t *testing.T) {
	l := newLAN(t)
	listener := listen(t, l.server, families[0].server, 9)
	client := dialT(t, l.client, portOf(listener.Addr()))
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after close: %v", err)
	}
	if _, err := dial(t.Context(), l.client, portOf(listener.Addr())); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial after close: %v", err)
	}
	go func() {
		defer server.Close()
		_, _ = io.Copy(server, server)
	}()
	if err := echo(client, 1000); err != nil {
		t.Error(err)
	}
}

// An association that has ended before it is accepted is no harm to the listener.
func TestAcceptAfterEnd(t *testing.T) {
	l := newLAN(t)
	listener := listen(t, l.server, families[0].server, 9)
	if err := dialT(t, l.client, portOf(listener.Addr())).Close(); err != nil {
		t.Fatal(err)
	}
	// Of the kernel, which keeps the server's end until it is accepted; ours knows that it has ended when Close returns.
	const assocs = "/proc/net/sctp/assocs"
	for deadline := time.Now().Add(30 * time.Second); kernelSpeaks(); time.Sleep(10 * time.Millisecond) {
		if strings.Count(l.client.RunT(t, "cat", assocs), "\n") <= 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the association does not end")
		}
	}
	client := dialT(t, l.client, portOf(listener.Addr()))
	for {
		server, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		if server.RemoteAddr().String() == client.LocalAddr().String() {
			return
		}
	}
}

// A peer that is gone does not hold Close for ever. (The kernel goes on without
// the caller, who then hears nothing of it.)
func TestCloseWithoutPeer(t *testing.T) {
	t.Parallel()
	var want error
	if !kernelSpeaks() {
		want = syscall.ETIMEDOUT
	}
	l := newLAN(t)
	client, server := pair(t, l, families[0].server)
	l.server.RunT(t, "ip", "link", "set", "eth0", "down")
	var group errgroup.Group
	for _, end := range []net.Conn{client, server} {
		group.Go(func() error {
			if err := end.Close(); !errors.Is(err, want) {
				return fmt.Errorf("close of %s returned %w", end.LocalAddr(), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// A client that lost its association without a word begins anew from the same
// port: the server's old end breaks, the new one works.
func TestClientRestarts(t *testing.T) {
	needUserSpace(t)
	l := newLAN(t)
	listener := listen(t, l.server, families[0].server, 9)
	laddr := netip.MustParseAddrPort("10.0.0.1:40000")
	from := func() net.Conn {
		var c net.Conn
		err := l.client.Do(func() (err error) {
			c, err = Dial(t.Context(), laddr, portOf(listener.Addr()))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := from()
	old, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = first.(*conn).path.Close() // no packet is sent

	go serveEcho(listener)
	second := from()
	if err := echo(second, 1000); err != nil {
		t.Error(err)
	}
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server's old end reads %v", err)
	}
	if err := errors.Join(second.Close(), old.Close()); err != nil {
		t.Error(err)
	}
}

// Each kind of packet is lost once, and the association goes its way. (A lost
// SHUTDOWN COMPLETE is not among them: the client is gone when the server asks
// for it again, and the server's guard timer ends its side.)
func TestLoss(t *testing.T) {
	for _, lost := range []struct {
		chunk    string
		receiver string
	}{
		{"INIT", "server"},
		{"INIT_ACK", "client"},
		{"COOKIE_ECHO", "server"},
		{"COOKIE_ACK", "client"},
		{"DATA", "server"},
		{"SACK", "client"},
		{"SHUTDOWN", "server"},
		{"SHUTDOWN_ACK", "client"},
	} {
		t.Run(lost.chunk, func(t *testing.T) {
			t.Parallel()
			l := newLAN(t)
			receiver := l.server
			if lost.receiver == "client" {
				receiver = l.client
			}
			rule := "-A INPUT -p sctp --chunk-types any " + lost.chunk +
				" -m statistic --mode nth --every 100000 --packet 0 -j DROP"
			receiver.RunT(t, "iptables", strings.Fields(rule)...)
			server := listen(t, l.server, families[0].server, 9)
			go serveEcho(server)
			c := dialT(t, l.client, portOf(server.Addr()))
			if err := echo(c, 10_000); err != nil {
				t.Error(err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if got := receiver.RunT(t, "iptables", "-S", "INPUT", "-v"); !droppedOne.MatchString(got) {
				t.Errorf("no packet was lost:\n%s", got)
			}
		})
	}
}

var droppedOne = regexp.MustCompile(`-c 1 \d+ -j DROP`)

// Nobody answers: Dial waits for its context, no longer and no less.
func TestDialEndsWithContext(t *testing.T) {
	l := newLAN(t)
	l.server.RunT(t, "iptables", "-A", "INPUT", "-p", "sctp", "-j", "DROP")
	server := listen(t, l.server, families[0].server, 9)
	for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if errors.Is(want, context.Canceled) {
			cancel()
		}
		if _, err := dial(ctx, l.client, portOf(server.Addr())); !errors.Is(err, want) {
			t.Errorf("dial returned %v, want %v", err, want)
		}
		cancel()
	}
}

func TestUnspecifiedAddress(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:9", "[::]:9"} {
		if _, err := Listen(netip.MustParseAddrPort(addr)); !errors.Is(err, errOneAddress) {
			t.Errorf("listen %s: %v", addr, err)
		}
	}
}
