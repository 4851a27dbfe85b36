// Package proxytest is one table of behaviours that every backend must show. For
// each row it builds a cluster around a real node, has the backend program it,
// sends real packets from everybody who may send, and compares what happened with
// Table.Lookup, the oracle; and the oracle with what the row says.
package proxytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
)

const (
	// patience is how long an answer that must come may take.
	patience = 10 * time.Second
	// silence is how long none must have come where none may.
	silence = 200 * time.Millisecond
	// flowsEach is how many flows each backend must get.
	flowsEach = 2
)

// Subject is a backend to be tried.
type Subject struct {
	// Start is called on a thread inside the node's namespace, as are the backend's
	// methods. cgroup is one in which all sockets of the node and its pods are, and
	// no others; "" without Sockets.
	Start func(ctx context.Context, cgroup string) (proxy.Backend, error)
	// Sockets: TCP and UDP flows that begin on the node are translated before there
	// is a packet. The kernel then chooses the source for the way to the endpoint,
	// so that nothing has to be masqueraded: the endpoint sees the sender itself. A
	// frontend with source ranges is not for sockets whose source is yet unknown.
	Sockets bool
	// Protocols are those that are tried; none: all.
	Protocols []service.Protocol
}

func (s Subject) protocols() []service.Protocol {
	if len(s.Protocols) > 0 {
		return s.Protocols
	}
	return []service.Protocol{service.TCP, service.UDP, service.SCTP}
}

// Run tries every behaviour with a backend.
func Run(t *testing.T, subject Subject) {
	w := newWorld(t, subject)
	var backend proxy.Backend
	err := w.node.Do(func() (err error) {
		backend, err = subject.Start(t.Context(), w.cgroupPath())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ipv6 := range []bool{false, true} {
		for _, protocol := range subject.protocols() {
			v := variant{ipv6, protocol}
			t.Run(v.String(), func(t *testing.T) {
				for _, b := range behaviours {
					if b.ipv4Only && v.ipv6 {
						continue
					}
					t.Run(b.name, func(t *testing.T) { newCluster(t, w, backend, v, b.config).try(t, b) })
				}
				t.Run("random clusters", func(t *testing.T) {
					g := generator{rand.New(rand.NewPCG(*seed, uint64(v.protocol)))}
					newCluster(t, w, backend, v, g.config()).random(t, g)
				})
				t.Run("flows that last", func(t *testing.T) { newCluster(t, w, backend, v, service.Config{}).lasting(t) })
				if protocol != service.SCTP {
					t.Run("packets of all sizes", func(t *testing.T) { newCluster(t, w, backend, v, service.Config{}).sizes(t) })
				}
			})
		}
	}
}

// cluster is what a backend is told of in one variant, step by step.
type cluster struct {
	*world
	variant
	backend  proxy.Backend
	resolver *service.Resolver
}

// newCluster has nothing but the node, of which config says what is special. To the
// backend it is the cluster before, after all in it has gone.
func newCluster(t *testing.T, w *world, backend proxy.Backend, v variant, config service.Config) *cluster {
	t.Helper()
	config.NodeName = "n1"
	c := &cluster{world: w, variant: v, backend: backend, resolver: service.NewResolver(config)}
	c.resolver.Apply(service.Update{Nodes: map[string]*service.Node{"n1": thisNode()}})
	change := service.Change{Node: true}
	if w.before != nil {
		change.Frontends = slices.SortedFunc(maps.Keys(w.before.Frontends), service.Key.Compare)
		change.Pools = slices.SortedFunc(maps.Keys(w.before.Pools), service.PoolID.Compare)
	}
	w.before = c.resolver.Table()
	c.sync(t, change)
	w.forgetFlows(t)
	return c
}

func (c *cluster) sync(t *testing.T, change service.Change) {
	t.Helper()
	err := c.node.Do(func() error { return c.backend.Sync(t.Context(), c.resolver.Table(), change) })
	if err != nil {
		t.Fatalf("sync: %v", err)
	}
}

// apply changes the cluster.
func (c *cluster) apply(t *testing.T, objects ...object) {
	t.Helper()
	u := newUpdate()
	for _, o := range objects {
		o(c.variant, &u)
	}
	c.sync(t, c.resolver.Apply(u))
}

// try goes through one behaviour.
func (c *cluster) try(t *testing.T, b behaviour) {
	for i, s := range b.steps {
		c.apply(t, s.objects...)
		c.forgetFlows(t)
		for _, f := range s.flows {
			to := netip.AddrPortFrom(f.to(c.variant), f.port)
			name := fmt.Sprintf("step %d, %s asks %s", i+1, f.from, to)
			decision := c.lookup(f.from, to)
			if diff := cmp.Diff(f.want, describe(decision)); diff != "" {
				t.Errorf("%s: (-row +oracle)\n%s", name, diff)
			}
			if diff := cmp.Diff(c.seen(decision, f.from, to), c.observe(t, f.from, to, decision)); diff != "" {
				t.Errorf("%s: (-oracle +packets)\n%s", name, diff)
			}
		}
	}
}

// lookup is the oracle's decision. Parties are behind interfaces of their names.
func (c *cluster) lookup(from string, to netip.AddrPort) service.Decision {
	p := service.Packet{Src: c.addr(from), Dst: to, Protocol: c.protocol, In: from}
	if from == "node" {
		p.In = ""
	}
	if to.Addr().IsLoopback() {
		p.Src = to.Addr()
	}
	return c.resolver.Table().Lookup(p)
}

// describe puts a decision into words: "pass", "reject", "drop", or the backends
// in their order, with | between those of which a client keeps one. A backend
// that sees an address of the node's instead of the sender's has a star.
func describe(d service.Decision) string {
	if d.Verdict != service.Forward {
		return d.Verdict.String()
	}
	var words []string
	for _, b := range d.Backends {
		words = append(words, word(b, d.Masquerades(b)))
	}
	if d.Affinity > 0 {
		return strings.Join(words, "|")
	}
	return strings.Join(words, " ")
}

// seen is describe as far as packets show it: what is not for a Service has no
// answer, as if it were dropped; and a masqueraded flow of the node's own has an
// address of the node as before.
func (c *cluster) seen(d service.Decision, from string, to netip.AddrPort) string {
	switch {
	case d.Verdict == service.Pass || d.Verdict == service.Drop:
		return "silence"
	case from == "node" || c.bySocket(from, to):
		return strings.ReplaceAll(describe(d), "*", "")
	}
	return describe(d)
}

// bySocket says whether a flow is translated at the sender's socket.
func (c *cluster) bySocket(from string, to netip.AddrPort) bool {
	f, ok := c.resolver.Table().Frontend(to, c.protocol)
	return c.cgroup != nil && c.protocol != service.SCTP && onNode[from] && ok && len(f.Sources) == 0
}

// word names a backend: a, or a:9090 where it is not at servicePort.
func word(b netip.AddrPort, masqueraded bool) string {
	w := party(b.Addr())
	if b.Port() != servicePort {
		w = fmt.Sprintf("%s:%d", w, b.Port())
	}
	if masqueraded {
		w += "*"
	}
	return w
}

// observe sends real flows and describes what became of them in the same words,
// or as "silence". Each of the backends that take turns must get exactly
// flowsEach flows; else the word says how many it got. It looks at the oracle's
// decision only to know how many flows to send and for how long to wait.
func (c *cluster) observe(t *testing.T, from string, to netip.AddrPort, d service.Decision) string {
	t.Helper()
	limit := patience
	if c.seen(d, from, to) == "silence" {
		limit = silence
	}
	got, failure := c.send(t, volley{from, to, max(len(d.Backends)*flowsEach, 1), limit}, d)
	switch {
	case failure != "":
		return failure
	case d.Affinity > 0:
		return kept(got, c.seen(d, from, to))
	}
	var words []string
	for w, n := range got {
		if n != flowsEach {
			w = fmt.Sprintf("%s(%d flows)", w, n)
		}
		words = append(words, w)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

// volley are flows that a party sends one after the other, and for how long it waits
// for answers.
type volley struct {
	from  string
	to    netip.AddrPort
	flows int
	limit time.Duration
}

// send sends flows and counts which backends they got to, or says why they got to
// none. Decision is what is expected of them.
func (c *cluster) send(t *testing.T, v volley, d service.Decision) (got map[string]int, failure string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), v.limit)
	defer cancel()
	replies, err := c.ask(ctx, v.from, echo.Endpoint{Network: c.protocol.String(), Addr: v.to}, v.flows)
	timeout := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED) && d.Verdict == service.Pass && party(v.to.Addr()) != "":
		return nil, "silence" // the party itself refuses what is not for a Service
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, "reject"
	case errors.Is(err, syscall.EPERM) && v.from == "node" && d.Verdict != service.Forward:
		// The packet did not pass the sender's own output filter. Whether that
		// would have sent an error too cannot be seen.
		return nil, c.seen(d, v.from, v.to)
	case timeout && v.limit == silence:
		return nil, "silence"
	case err != nil:
		return nil, "failed: " + err.Error()
	}
	got = map[string]int{}
	for _, r := range replies {
		masqueraded := v.from != "node" && party(r.Client.Addr()) != v.from
		got[word(r.Server, masqueraded)]++
	}
	return got, ""
}

// kept is choices if all flows went to one and the same of them.
func kept(turns map[string]int, choices string) string {
	for word := range turns {
		if len(turns) == 1 && slices.Contains(strings.Split(choices, "|"), word) {
			return choices
		}
	}
	return fmt.Sprintf("not kept: %v", turns)
}

// ask opens n connections one after the other and asks once on each. All stay
// open to the end, so that no two have one source port.
func (w *world) ask(ctx context.Context, from string, at echo.Endpoint, n int) ([]echo.Reply, error) {
	var replies []echo.Reply
	for range n {
		var session *echo.Session
		err := w.parties[from].Do(func() (err error) {
			session, err = echo.Open(ctx, at.Network, netip.AddrPort{}, at.Addr)
			return err
		})
		if err != nil {
			return nil, err
		}
		defer func() { _ = session.Close() }()
		reply, err := session.Ask(ctx)
		if err != nil {
			return nil, err
		}
		replies = append(replies, reply)
	}
	return replies, nil
}

// serve runs the server of a party until the test ends.
func (w *world) serve(t testing.TB, name string) {
	t.Helper()
	var at []echo.Endpoint
	for _, addr := range where[name] {
		for _, port := range []uint16{servicePort, otherPort} {
			for _, network := range []string{"tcp", "udp", "sctp"} {
				at = append(at, echo.Endpoint{Network: network, Addr: netip.AddrPortFrom(addr, port)})
			}
		}
	}
	echo.ServeT(t, w.parties[name], name, at...)
}
