package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

// macvlanLab has two nodes with pods on their bridges and on macvlan.
type macvlanLab struct {
	*lab.Lab
	t                 *testing.T
	bridge1, bridge2  *lab.Pod // on node-1, on node-2
	lan1, lan1b, lan2 *lab.Pod // on macvlan, on node-1, node-1 and node-2
	node1, node2      asker
	askers            []asker
}

// asker is a node or a pod.
type asker struct {
	name  string
	addrs []netip.Addr
	ask   func(context.Context, echo.Endpoint) (echo.Reply, error)
}

func newMacvlanLab(t *testing.T) *macvlanLab {
	t.Helper()
	l := labtest.New(t, lab.Options{Nodes: 2, Macvlan: true, BinDir: programs.Dir(t)})
	m := &macvlanLab{Lab: l, t: t}
	m.bridge1, m.bridge2 = labtest.AddPod(t, l, l.Nodes[0], "bridge-1"), labtest.AddPod(t, l, l.Nodes[1], "bridge-2")
	for _, p := range []struct {
		into **lab.Pod
		node int
		name string
	}{{&m.lan1, 0, "lan-1"}, {&m.lan1b, 0, "lan-1b"}, {&m.lan2, 1, "lan-2"}} {
		pod, err := l.AddMacvlanPod(t.Context(), l.Nodes[p.node], p.name)
		if err != nil {
			t.Fatal(err)
		}
		*p.into = pod
	}
	for _, n := range l.Nodes {
		m.askers = append(m.askers, asker{n.Name, n.Addrs, n.Ask})
	}
	m.node1, m.node2 = m.askers[0], m.askers[1]
	for _, p := range m.lans() {
		m.askers = append(m.askers, asker{p.Name, p.Addrs, p.Ask})
	}
	return m
}

func (m *macvlanLab) lans() []*lab.Pod { return []*lab.Pod{m.lan1, m.lan1b, m.lan2} }

// reaches asks a server in each of its addresses over each protocol, and wants it
// to see who asked.
func (m *macvlanLab) reaches(from asker, at []echo.Endpoint, name string) error {
	for _, e := range at {
		ctx, cancel := context.WithTimeout(m.t.Context(), 10*time.Second)
		reply, err := from.ask(ctx, e)
		cancel()
		if err == nil && (reply.Name != name || !slices.Contains(from.addrs, reply.Client.Addr())) {
			err = fmt.Errorf("%s saw %s", reply.Name, reply.Client)
		}
		if err != nil {
			return fmt.Errorf("%s to %s, %s %s: %w", from.name, name, e.Network, e.Addr, err)
		}
	}
	return nil
}

// serveOnNode has a server listen on a node's addresses.
func (m *macvlanLab) serveOnNode(n *lab.Node) []echo.Endpoint {
	m.t.Helper()
	var at []echo.Endpoint
	for _, a := range n.Addrs {
		for _, network := range []string{"tcp", "udp"} {
			at = append(at, echo.Endpoint{Network: network, Addr: netip.AddrPortFrom(a, 7777)})
		}
	}
	echo.ServeT(m.t, n.NS(), n.Name, at...)
	return at
}

// Nodes and macvlan pods, of the same node and of another, reach each other, and
// see each other by their own addresses; so do the pods among each other, and
// those on a bridge.
func TestMacvlanMesh(t *testing.T) {
	m := newMacvlanLab(t)
	var asks errgroup.Group
	asks.SetLimit(8)
	for _, n := range m.Nodes {
		at := m.serveOnNode(n)
		for _, p := range m.askers[2:] {
			asks.Go(func() error { return m.reaches(p, at, n.Name) })
		}
	}
	for _, from := range m.askers {
		for _, to := range m.lans() {
			asks.Go(func() error { return m.reaches(from, to.Endpoints(), to.Name) })
		}
	}
	for _, to := range []*lab.Pod{m.bridge1, m.bridge2} { // by way of the node
		asks.Go(func() error { return m.reaches(m.askers[2], to.Endpoints(), to.Name) })
	}
	if err := asks.Wait(); err != nil {
		t.Error(err)
	}
	m.checkBlocks()
}

// checkBlocks: each node has one block of each pool, of its own.
func (m *macvlanLab) checkBlocks() {
	m.t.Helper()
	for i, n := range m.Nodes {
		out, err := n.Output(m.t.Context(), "ip", "-4", "route", "show", "dev", "fairlead-shim")
		if err != nil {
			m.t.Fatal(err)
		}
		want := fmt.Sprintf("192.168.244.%d/28 proto 251 scope link src %s", 64+16*i, n.Addrs[0])
		if strings.TrimSpace(out) != want {
			m.t.Errorf("routes of the shim of %s:\n%swant %s", n.Name, out, want)
		}
	}
}

// Macvlan pods reach virtual IPs, wherever the backend is: behind the node, behind
// another one, on macvlan here or there, or the pod itself.
func TestMacvlanVirtualIPs(t *testing.T) {
	m := newMacvlanLab(t)
	for i, backend := range []*lab.Pod{m.bridge1, m.bridge2, m.lan1b, m.lan2, m.lan1} {
		t.Run("backend "+backend.Name, func(t *testing.T) {
			s := lab.NewService(fmt.Sprint("svc-", i), fmt.Sprint("10.96.0.", 100+i), fmt.Sprint("fd00:10:96::", 100+i))
			if err := m.Apply(append([]lab.Object{s}, lab.Slices(s, backend)...)...); err != nil {
				t.Fatal(err)
			}
			for _, vip := range lab.VIPs(s) {
				err := m.lan1.AskUntil(t.Context(), vip, func(r echo.Reply, err error) bool { return err == nil && r.Name == backend.Name })
				for range 10 { // after the first one a redirect would be believed
					if err == nil {
						_, err = m.lan1.Ask(t.Context(), vip)
					}
				}
				if err != nil {
					t.Errorf("%s %s: %v", vip.Network, vip.Addr, err)
				}
			}
		})
	}
}

// A shim that somebody removes or changes is mended, and nobody else on the link
// takes its hardware address for the node's.
func TestMacvlanShimRepair(t *testing.T) {
	m := newMacvlanLab(t)
	node := m.Nodes[0]
	at := m.lan1.Endpoints()
	for _, damage := range []string{
		"ip link del fairlead-shim", "ip link set fairlead-shim down", "ip route flush dev fairlead-shim",
		"nft delete table ip fairlead-shim && ip link set fairlead-shim address 02:00:00:00:00:01",
	} {
		if _, err := node.Output(t.Context(), "sh", "-c", damage); err != nil {
			t.Fatal(err)
		}
		for _, e := range []echo.Endpoint{at[0], at[len(at)/2]} { // TCP, IPv4 and IPv6
			err := node.AskUntil(t.Context(), e, func(r echo.Reply, err error) bool { return err == nil })
			if err != nil {
				t.Fatalf("after %q: %v", damage, err)
			}
		}
	}
	if err := m.reaches(m.node1, at, "lan-1"); err != nil {
		t.Error(err)
	}
	m.checkNeighbour()
}

// checkNeighbour has node-2 ask the link for node-1.
func (m *macvlanLab) checkNeighbour() {
	m.t.Helper()
	link, err := m.Nodes[0].Output(m.t.Context(), "ip", "-br", "link", "show", "eth0")
	if err != nil {
		m.t.Fatal(err)
	}
	mac := strings.Fields(link)[2]
	for range 5 {
		if _, err := m.Nodes[1].Output(m.t.Context(), "ip", "neigh", "flush", "dev", "eth0"); err != nil {
			m.t.Fatal(err)
		}
		for _, a := range m.node1.addrs { // nobody listens there: to find who has the address is enough
			_, _ = m.node2.ask(m.t.Context(), echo.Endpoint{Network: "tcp", Addr: netip.AddrPortFrom(a, 1)})
		}
		out, err := m.Nodes[1].Output(m.t.Context(), "ip", "neigh", "show", "dev", "eth0")
		if err != nil {
			m.t.Fatal(err)
		}
		for _, line := range strings.Split(out, "\n") {
			addr, _, _ := strings.Cut(line, " ")
			if slices.Contains(m.node1.addrs, parseAddr(addr)) && !strings.Contains(line, mac) {
				m.t.Errorf("a neighbour of node-1, whose hardware address is %s, has %q", mac, line)
			}
		}
	}
}

func parseAddr(text string) netip.Addr {
	addr, _ := netip.ParseAddr(text)
	return addr
}
