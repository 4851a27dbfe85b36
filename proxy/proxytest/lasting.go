package proxytest

import (
	"context"
	"errors"
	"net/netip"
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
	if c.protocol == service.UDP {
		c.lastingDatagrams(ctx, t)
	} else {
		c.lastingConnection(ctx, t)
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

func (c *cluster) lastingDatagrams(ctx context.Context, t *testing.T) {
	from := netip.AddrPortFrom(c.addr("client"), 40000) // each ask is from here: one flow
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
		var reply echo.Reply
		err := c.parties["client"].Do(func() (err error) {
			reply, err = echo.Ask(ctx, "udp", from, c.web())
			return err
		})
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
