package proxytest

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// Place is where behaviours are tried, for who measures: a node, its pods a, b and
// client, and others (see world).
type Place struct{ world *world }

// NewPlace builds a Place that is there until the test ends.
func NewPlace(t testing.TB) Place {
	t.Helper()
	return Place{newWorld(t, Subject{})}
}

// NodeObject is the object of the node, as far as a proxy looks at it.
func NodeObject() *service.Node { return thisNode() }

// Node is the namespace of the node.
func (p Place) Node() *netns.NS { return p.world.node }

// Server is where pod a, b or c serves over IPv4.
func (p Place) Server(name string) netip.AddrPort {
	return netip.AddrPortFrom(where[name][0], servicePort)
}

// From runs f on a thread inside the namespace of a party.
func (p Place) From(party string, f func() error) error { return p.world.parties[party].Do(f) }

// UntilServedBy waits until a connection of pod client over TCP is answered by another
// pod, or ctx ends. It asks again every two milliseconds.
func (p Place) UntilServedBy(ctx context.Context, at netip.AddrPort, pod string) error {
	for {
		short, cancel := context.WithTimeout(ctx, silence/2)
		replies, err := p.world.ask(short, "client", echo.Endpoint{Network: "tcp", Addr: at}, 1)
		cancel()
		if err == nil && replies[0].Name == pod {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}
