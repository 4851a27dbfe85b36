package node

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
)

// patience is how long a test waits for what happens in a moment.
const patience = time.Minute

// Every pod reaches every other one and every node, and each is seen by its own
// address; so does every node every pod.
func TestFullMesh(t *testing.T) {
	for _, routing := range []Routing{Auto, VXLAN} {
		t.Run(string(routing), func(t *testing.T) {
			w := newWorld(t)
			// The router knows nodes only and drops what comes from pods, as the
			// networks of clouds do.
			shell(t, w.router, `
				iptables -A FORWARD -i lan0 -o lan1 -s 10.244.0.0/16 -j DROP
				iptables -A FORWARD -i lan1 -o lan0 -s 10.244.0.0/16 -j DROP
				ip6tables -A FORWARD -i lan0 -o lan1 -s fd00:244::/32 -j DROP
				ip6tables -A FORWARD -i lan1 -o lan0 -s fd00:244::/32 -j DROP`)
			w.connect(Options{Routing: routing, VNI: 7, Port: 4789})
			w.mesh()
		})
	}
}

// place is somewhere packets come from and go to.
type place struct {
	name  string
	node  *testNode
	inPod bool
	addrs []netip.Addr
}

func (w *world) places() []place {
	var all []place
	for _, n := range w.nodes {
		all = append(all,
			place{"pod of " + n.Name, n, true, []netip.Addr{n.podAddr(0, 2), n.podAddr(1, 2)}},
			place{"node " + n.Name, n, false, n.Addrs})
	}
	return all
}

func (p place) ns() *netns.NS {
	if p.inPod {
		return p.node.pod
	}
	return p.node.ns
}

func (w *world) mesh() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 3*patience)
	defer cancel()
	for _, p := range w.places() {
		p.serve(w.t)
	}
	var asks errgroup.Group
	for _, from := range w.places() {
		for _, to := range w.places() {
			if from.node != to.node && (from.inPod || to.inPod) {
				asks.Go(func() error { return from.ns().Do(func() error { return askAll(ctx, from, to) }) })
			}
		}
	}
	if err := asks.Wait(); err != nil {
		w.t.Error(err)
	}
}

func (p place) serve(t testing.TB) {
	t.Helper()
	var at []echo.Endpoint
	for _, a := range p.addrs {
		for _, network := range []string{"tcp", "udp"} {
			at = append(at, echo.Endpoint{Network: network, Addr: netip.AddrPortFrom(a, 8080)})
		}
	}
	echo.ServeT(t, p.ns(), p.name, at...)
}

func askAll(ctx context.Context, from, to place) error {
	for i, addr := range to.addrs {
		for _, network := range []string{"tcp", "udp"} {
			reply, err := echo.Ask(ctx, network, netip.AddrPort{}, netip.AddrPortFrom(addr, 8080))
			if err != nil {
				return fmt.Errorf("%s to %s: %w", from.name, to.name, err)
			}
			if reply.Name != to.name || reply.Client.Addr() != from.addrs[i] {
				return fmt.Errorf("%s to %s: %s saw %s, want %s", from.name, to.name, reply.Name, reply.Client.Addr(), from.addrs[i])
			}
		}
	}
	return nil
}
