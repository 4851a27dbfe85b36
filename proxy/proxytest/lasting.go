package proxytest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/proxy/service"
)

// lasting checks what becomes of a flow when its endpoint leaves. It goes on as
// long as the endpoint serves, and a TCP connection even longer: the endpoint may
// finish what it has begun. A UDP client's next datagram then goes to an endpoint
// that is there, and so does an SCTP client that begins again from its port.
func (c *cluster) lasting(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c.apply(t, svc("web", 10), slice("web-1", "web", ready("a")))
	switch {
	case c.protocol != service.UDP:
		c.lastingConnection(ctx, t)
		if c.protocol == service.TCP {
			c.resetConnections(ctx, t)
		}
	case c.cgroup != nil:
		c.lastingDatagrams(t, c.askBySocket(ctx, t))
		c.connectedDatagrams(ctx, t)
	default:
		c.lastingDatagrams(t, func() (echo.Reply, error) { return c.askFrom(ctx, 40000) })
	}
}

func (c *cluster) lastingConnection(ctx context.Context, t *testing.T) {
	var session *echo.Session
	err := c.parties["client"].Do(func() (err error) {
		session, err = echo.Open(ctx, c.protocol.String(), netip.AddrPort{}, c.web())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	for _, step := range []struct {
		name   string
		change []object
	}{
		{"at first", nil},
		{"endpoint leaves", []object{slice("web-1", "web", leaving("a"), ready("b"))}},
		{"endpoint has left", []object{slice("web-1", "web", ready("b"))}},
		{"no endpoint", []object{slice("web-1", "web")}},
		{"no Service", []object{gone("web")}},
	} {
		if c.protocol == service.SCTP && step.name == "endpoint has left" {
			break
		}
		c.apply(t, step.change...)
		reply, err := session.Ask(ctx)
		if err != nil || reply.Name != "a" {
			t.Errorf("%s: answered by %q, %v; want a", step.name, reply.Name, err)
		}
	}
}

// resetConnections checks what a Service gets that wants connections reset when their
// endpoint has gone: those that serve are let alone, and so is a connection to an
// endpoint that leaves.
func (c *cluster) resetConnections(ctx context.Context, t *testing.T) {
	c.apply(t, svc("web", 10, resetOnRemoval), slice("web-1", "web", ready("a")))
	sessions := map[string]*echo.Session{}
	for _, from := range []string{"client", "node", "outside"} {
		err := c.parties[from].Do(func() (err error) {
			sessions[from], err = echo.Open(ctx, "tcp", netip.AddrPort{}, c.web())
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", from, err)
		}
		defer func() { _ = sessions[from].Close() }()
	}
	for _, change := range []object{slice("web-1", "web", ready("a")), slice("web-1", "web", leaving("a"), ready("b"))} {
		c.apply(t, change)
		for from, session := range sessions {
			if reply, err := session.Ask(ctx); err != nil || reply.Name != "a" {
				t.Errorf("%s, connected to a: answered by %q, %v", from, reply.Name, err)
			}
		}
	}
	c.apply(t, slice("web-1", "web", ready("b")))
	for from, session := range sessions {
		reply, err := session.Ask(ctx)
		ended := slices.ContainsFunc([]error{syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE},
			func(e error) bool { return errors.Is(err, e) })
		if !ended {
			t.Errorf("%s, connected to a, which has gone: answered by %q, %v; want a reset", from, reply.Name, err)
		}
	}
}

// askFrom asks from a port. To who sees packets it is always the same flow.
func (c *cluster) askFrom(ctx context.Context, port uint16) (reply echo.Reply, err error) {
	err = c.parties["client"].Do(func() error {
		reply, err = echo.Ask(ctx, "udp", netip.AddrPortFrom(c.addr("client"), port), c.web())
		return err
	})
	return reply, err
}

// askBySocket asks by one socket. Where sockets are translated, that is what a flow
// is.
func (c *cluster) askBySocket(ctx context.Context, t *testing.T) func() (echo.Reply, error) {
	t.Helper()
	var session *echo.Session
	err := c.parties["client"].Do(func() (err error) {
		session, err = echo.OpenUnconnected(c.web())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return func() (echo.Reply, error) { return session.Ask(ctx) }
}

// connectedDatagrams checks that a connected socket is ended when its endpoint goes:
// the kernel would send its datagrams there for ever.
func (c *cluster) connectedDatagrams(ctx context.Context, t *testing.T) {
	c.apply(t, slice("web-1", "web", ready("a")))
	var session *echo.Session
	err := c.parties["client"].Do(func() (err error) {
		session, err = echo.Open(ctx, "udp", netip.AddrPort{}, c.web())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	for _, change := range []object{slice("web-1", "web", ready("a")), slice("web-1", "web", leaving("a"), ready("b"))} {
		c.apply(t, change)
		if reply, err := session.Ask(ctx); err != nil || reply.Name != "a" {
			t.Errorf("connected to a: answered by %q, %v", reply.Name, err)
		}
	}
	c.apply(t, slice("web-1", "web", ready("b")))
	reply, err := session.Ask(ctx)
	if !echo.Ended(err) {
		t.Errorf("connected to a, which has gone: answered by %q, %v; want the end of the socket", reply.Name, err)
	}
}

func (c *cluster) lastingDatagrams(t *testing.T, ask func() (echo.Reply, error)) {
	for _, step := range []struct {
		name   string
		change []object
		want   string
	}{
		{"at first", nil, "a"},
		{"endpoint leaves", []object{slice("web-1", "web", leaving("a"), ready("b"))}, "a"},
		{"endpoint has left", []object{slice("web-1", "web", ready("b"))}, "b"},
		{"no endpoint", []object{slice("web-1", "web")}, "refused"},
		{"another endpoint", []object{slice("web-1", "web", ready("c"))}, "c"},
		{"Service has moved to another address and back", []object{svc("web", 11)}, ""},
		{"Service is back", []object{svc("web", 10), slice("web-1", "web", ready("b"))}, "b"},
	} {
		c.apply(t, step.change...)
		if step.want == "" {
			continue
		}
		reply, err := ask()
		if errors.Is(err, syscall.ECONNREFUSED) {
			reply.Name, err = "refused", nil
		}
		if err != nil || reply.Name != step.want {
			t.Errorf("%s: answered by %q, %v; want %s", step.name, reply.Name, err, step.want)
		}
	}
}

// web is where the Service web is.
func (c *cluster) web() netip.AddrPort { return netip.AddrPortFrom(vip(10)(c.variant), 80) }
