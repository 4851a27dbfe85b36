package proxytest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// Contender is a proxy that follows a cluster by itself.
type Contender struct {
	Name string
	// Start starts it inside the namespace of a node, with a configuration, until
	// the test ends.
	Start func(t *testing.T, node *netns.NS, config service.Config)
	// Draws: it draws a backend for each flow, so that each backend gets some of
	// many flows. Otherwise they take turns.
	Draws bool
	// Departures are where it does not do what the rows say.
	Departures []Departure
}

// Departure is what a contender does instead of what a row says.
type Departure struct {
	Behaviour, Reason string // of which row, and why
	Step              int    // counted from 1
	From              string
	To                string             // IPv4 address and port that is asked
	Protocols         []service.Protocol // none: all
	Answer            string
}

// Beside has contenders follow one cluster, each on a node of its own, and tries
// every behaviour with all of them. apply makes the objects of an update what
// they are to be. Behaviours in omitted cannot be had there, for the reasons
// given.
func Beside(t *testing.T, apply func(context.Context, service.Update) error, omitted map[string]string, contenders ...Contender) {
	b := &beside{apply: apply, contenders: contenders}
	rows := slices.DeleteFunc(slices.Clone(behaviours), func(row behaviour) bool { return omitted[row.name] != "" })
	if len(rows) != len(behaviours)-len(omitted) {
		t.Fatal("some that are omitted are no behaviours")
	}
	for _, c := range contenders {
		for _, d := range c.Departures {
			if !slices.ContainsFunc(rows, d.isOf) {
				t.Fatalf("%s departs from what no row says: %+v", c.Name, d)
			}
		}
	}
	// Rows with the same configuration one after the other: each start costs.
	slices.SortStableFunc(rows, func(a, b behaviour) int { return strings.Compare(fmt.Sprint(a.config), fmt.Sprint(b.config)) })
	for len(rows) > 0 {
		config := rows[0].config
		n := slices.IndexFunc(rows, func(row behaviour) bool { return !reflect.DeepEqual(row.config, config) })
		if n < 0 {
			n = len(rows)
		}
		name := rows[0].name
		if reflect.DeepEqual(config, service.Config{}) {
			name = "default configuration"
		}
		t.Run(name, func(t *testing.T) { b.run(t, config, rows[:n]) })
		rows = rows[n:]
	}
}

// beside is a cluster that contenders follow.
type beside struct {
	apply      func(context.Context, service.Update) error
	contenders []Contender
	worlds     []*world // of each contender
	fences     int
}

// run tries rows of one configuration, on nodes that have seen none before.
func (b *beside) run(t *testing.T, config service.Config, rows []behaviour) {
	b.worlds = nil
	config.NodeName = "n1"
	elsewhere := thisNode()
	elsewhere.Zone = "z0"
	b.applyAll(t, service.Update{Nodes: map[string]*service.Node{"n1": elsewhere}})
	for _, c := range b.contenders {
		w := newWorld(t, Subject{})
		b.worlds = append(b.worlds, w)
		c.Start(t, w.node, config)
	}
	b.moveNode(t)
	for _, ipv6 := range []bool{false, true} {
		for _, protocol := range []service.Protocol{service.TCP, service.UDP, service.SCTP} {
			v := variant{ipv6, protocol}
			t.Run(v.String(), func(t *testing.T) {
				for _, row := range rows {
					if row.ipv4Only && v.ipv6 || row.many && protocol != service.TCP {
						continue
					}
					t.Run(row.name, func(t *testing.T) { b.try(t, v, config, row) })
				}
			})
		}
	}
}

// try goes through one behaviour, from nothing to nothing.
func (b *beside) try(t *testing.T, v variant, config service.Config, row behaviour) {
	resolver := service.NewResolver(config)
	resolver.Apply(service.Update{Nodes: map[string]*service.Node{"n1": thisNode()}})
	made := newUpdate()
	defer func() { b.remove(t, v, made) }()
	for i, s := range row.steps {
		u := newUpdate()
		for _, o := range s.objects {
			o(v, &u)
		}
		maps.Copy(made.Services, u.Services)
		maps.Copy(made.Slices, u.Slices)
		b.become(t, v, u)
		resolver.Apply(u)
		var all sync.WaitGroup
		for n := range b.contenders {
			c := &cluster{world: b.worlds[n], variant: v, resolver: resolver}
			c.forgetFlows(t)
			all.Go(func() {
				for _, f := range s.flows {
					b.contenders[n].try(t, c, trial{row.name, i + 1, f})
				}
			})
		}
		all.Wait()
	}
}

// trial is a flow of a step of a row.
type trial struct {
	row  string
	step int
	flow
}

// try tries a flow with one contender.
func (c *Contender) try(t *testing.T, in *cluster, f trial) {
	to := netip.AddrPortFrom(f.to(in.variant), f.port)
	decision := in.lookup(f.from, to)
	want := in.seen(decision, f.from, to)
	if d := c.departure(f, in.protocol); d != nil {
		want = d.Answer
	}
	var got string
	if c.Draws {
		got = in.observeDrawn(t, f.from, to, decision, want)
	} else {
		got = in.observe(t, f.from, to, decision)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s, step %d, %s asks %s: (-wanted +packets)\n%s", c.Name, f.step, f.from, to, diff)
	}
}

// departure is what is said of a flow, if anything.
func (c *Contender) departure(f trial, protocol service.Protocol) *Departure {
	for i, d := range c.Departures {
		if d.Behaviour == f.row && d.Step == f.step && d.isFrom(f.flow) &&
			(len(d.Protocols) == 0 || slices.Contains(d.Protocols, protocol)) {
			return &c.Departures[i]
		}
	}
	return nil
}

// isFrom says whether it is a flow that is meant.
func (d Departure) isFrom(f flow) bool {
	return d.From == f.from && d.To == netip.AddrPortFrom(f.to(variant{}), f.port).String()
}

// isOf says whether it is a flow of a row that is meant.
func (d Departure) isOf(row behaviour) bool {
	return d.Behaviour == row.name && 0 < d.Step && d.Step <= len(row.steps) &&
		slices.ContainsFunc(row.steps[d.Step-1].flows, d.isFrom)
}

// observeDrawn is observe for flows whose backends are drawn: all that may get
// one do, if only there are enough flows.
func (c *cluster) observeDrawn(t *testing.T, from string, to netip.AddrPort, d service.Decision, want string) string {
	t.Helper()
	const batch, most = 8, 100 // flows; the odds that one of three is not drawn in 100 are 1 to 10^17
	v := volley{from, to, batch, patience}
	if want == "silence" {
		v.limit = silence
	}
	got := map[string]int{}
	for flows := 0; flows == 0 || d.Affinity == 0 && len(got) < len(strings.Fields(want)) && flows < most; flows += batch {
		more, failure := c.send(t, v, d)
		if failure != "" {
			return failure
		}
		for w, n := range more {
			got[w] += n
		}
	}
	if d.Affinity > 0 {
		return kept(got, want)
	}
	return strings.Join(slices.Sorted(maps.Keys(got)), " ")
}

// remove removes what a behaviour has made.
func (b *beside) remove(t *testing.T, v variant, made service.Update) {
	t.Helper()
	for name := range made.Services {
		made.Services[name] = nil
	}
	for name := range made.Slices {
		made.Slices[name] = nil
	}
	b.become(t, v, made)
}

// moveNode moves the node to its zone while the contenders run, and waits until they
// know. What zone it is in at their start kube-proxy 1.37 may miss: its informer of
// the Node runs before anybody is there to be told, and what is the same again is not
// told again.
func (b *beside) moveNode(t *testing.T) {
	t.Helper()
	v, u := variant{protocol: service.TCP}, newUpdate()
	u.Nodes = map[string]*service.Node{"n1": thisNode()}
	svc("zone", zoneIP)(v, &u)
	slice("zone", "zone", ready("a").forZone("z1"), ready("c").forZone("z2"))(v, &u)
	b.applyAll(t, u)
	const flows = 12 // if one of two were drawn, odds would be 1 to 4096 that all are one's
	b.await(t, netip.AddrPortFrom(vip(zoneIP)(v), 80), flows, func(replies []echo.Reply) bool {
		return !slices.ContainsFunc(replies, func(r echo.Reply) bool { return r.Name != "a" })
	})
}

// become applies an update, and waits until every contender has programmed it.
// That is when what is applied after it is there, a fence: a Service port and an
// EndpointSlice of its own, for either kind of object may arrive first.
func (b *beside) become(t *testing.T, v variant, u service.Update) {
	t.Helper()
	b.applyAll(t, u)
	b.fences++
	v.protocol = service.TCP
	name, portName, port := "fence-"+v.String(), fmt.Sprintf("p%d", b.fences), uint16(fencePort+b.fences)
	fence := newUpdate()
	svc(name, fenceIP, namedPort(portName, port))(v, &fence)
	slicePorts(map[string]uint16{portName: servicePort}, name, name, ready("c"))(v, &fence)
	b.applyAll(t, fence)
	b.await(t, netip.AddrPortFrom(vip(fenceIP)(v), port), 1, func([]echo.Reply) bool { return true })
}

const (
	zoneIP, fenceIP = 249, 250 // numbers of cluster IPs
	fencePort       = 10000    // of the fence before the first
	fencePatience   = 30 * time.Second
)

func (b *beside) applyAll(t *testing.T, u service.Update) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fencePatience)
	defer cancel()
	if err := b.apply(ctx, u); err != nil {
		t.Fatal(err)
	}
}

// await has every contender's client open flows over TCP until the answers are right.
func (b *beside) await(t *testing.T, at netip.AddrPort, flows int, right func([]echo.Reply) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fencePatience)
	defer cancel()
	for n, w := range b.worlds {
		for {
			short, cancel := context.WithTimeout(ctx, silence/2)
			replies, err := w.ask(short, "client", echo.Endpoint{Network: "tcp", Addr: at}, flows)
			cancel()
			if err == nil && right(replies) {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s does not serve %s as it should: %v; answers: %v", b.contenders[n].Name, at, err, replies)
			}
		}
	}
}

func newUpdate() service.Update {
	return service.Update{Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.Slice{}}
}
