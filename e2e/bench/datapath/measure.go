package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/bench/load"
)

// kind is one way to measure: what a slice does, and the figures that it has.
type kind struct {
	id, title string
	figures   []figure
	// proxies: only candidates with a proxy are measured, and compared with the
	// first of them.
	proxies bool
	// always: with every number of Services, not only with the first.
	always bool
	// check, if there is one, is what must be right before the figures count.
	check func(ctx context.Context, w *world) Check
	slice func(ctx context.Context, w *world) (bench.Sample, error)
	// blocks is how many are measured, and about how long a slice takes.
	blocks int
	about  time.Duration
	// noWarmUp: see bench.Blocks.
	noWarmUp bool
}

// figure is one number that slices of a kind measure.
type figure struct {
	key, title, unit string
	higher           bool // is better
}

// Keys of figures that are not of package load.
const (
	cpu       = "cpu"
	cold      = "cold sync"
	warm      = "warm sync"
	changed   = "change"
	resident  = "resident"
	peak      = "peak"
	failed    = "failed"
	longest   = "longest"
	perSecond = load.PerSecond
)

var (
	connectTime  = figure{load.Connect, "connect", "µs", false}
	exchangeTime = figure{load.Exchange, "request and response", "µs", false}
	tail         = figure{load.Tail, "99th percentile", "µs", false}
	cpuTime      = figure{cpu, "processor time", "µs", false}
	bandwidth    = figure{load.Bandwidth, "throughput", "Gbit/s", true}
)

func rate(of string) figure { return figure{perSecond, of, "1/s", true} }

// flow is a way that traffic can take: who sends over what to where.
type flow struct {
	network string
	from    func(*world) *agent
	to      netip.AddrPort
	source  []netip.Addr // that the backend may see
	own     bool         // to is a backend itself: it is traffic for no Service
}

func pods(w *world) *agent      { return w.pod }
func unhooked(w *world) *agent  { return w.unhooked }
func outsiders(w *world) *agent { return w.fromOutside }

const vipPort = 80

// toVIP is from a pod to the Service web.
func toVIP(network string, family int) flow {
	return flow{network: network, from: pods, to: netip.AddrPortFrom(webVIP[family], vipPort), source: clientAddr[family : family+1]}
}

// nodeAddrs are those that a masqueraded flow may come from.
var nodeAddrs = []netip.Addr{nodeAddr[0], nodeAddr[1], linkAddr[0], linkAddr[1]}

// target is where a candidate is asked: without a proxy a backend itself, which is
// as far away.
func (f flow) target(candidate string) netip.AddrPort {
	if !isDirect(candidate) {
		return f.to
	}
	family := 0
	if f.to.Addr().Is6() {
		family = 1
	}
	return netip.AddrPortFrom(backendAddr["a"][family], podPort)
}

// traffic are the kinds that send through a path.
func traffic(s suite) []kind {
	backend := flow{network: "tcp", from: pods, to: netip.AddrPortFrom(backendAddr["a"][0], podPort), source: clientAddr[:1], own: true}
	packets := toVIP("tcp", 0)
	packets.from = unhooked
	nodePort := flow{network: "tcp", from: outsiders, to: netip.AddrPortFrom(nodeAddr[0], webNodePort), source: nodeAddrs}
	external := flow{network: "tcp", from: outsiders, to: netip.AddrPortFrom(webExternal[0], vipPort), source: nodeAddrs}

	connection := []figure{exchangeTime, connectTime, tail, rate("connections"), cpuTime}
	kinds := []kind{
		s.traffic("tcp-new", "TCP connections to a cluster IP", toVIP("tcp", 0), load.OrderNew, connection).everyTime(),
		s.traffic("no-service-new", "TCP connections for no Service", backend, load.OrderNew, connection).everyTime(),
		s.traffic("node-port-new", "TCP connections to a node port from outside", nodePort, load.OrderNew, connection).everyTime(),
		s.traffic("udp-new", "UDP flows to a cluster IP", toVIP("udp", 0), load.OrderNew, []figure{exchangeTime, tail, cpuTime}).everyTime(),
		s.traffic("tcp-same", "TCP requests on one connection", toVIP("tcp", 0), load.OrderSame, []figure{exchangeTime, tail, rate("requests"), cpuTime}),
		s.traffic("tcp-stream", "TCP throughput", toVIP("tcp", 0), load.OrderStream, []figure{bandwidth}),
		s.traffic("udp-same", "UDP requests on one flow", toVIP("udp", 0), load.OrderSame, []figure{exchangeTime, tail, cpuTime}),
		s.traffic("udp-window", "UDP datagrams, 32 under way", toVIP("udp", 0), load.OrderWindow, []figure{rate("datagrams")}),
		s.traffic("sctp-new", "SCTP associations (in user space) to a cluster IP", toVIP("sctp", 0), load.OrderNew, []figure{exchangeTime}),
		s.traffic("packets-new", "TCP connections to a cluster IP of a sender without a socket on the node", packets, load.OrderNew, connection),
		s.traffic("external-new", "TCP connections to an external IP from outside", external, load.OrderNew, connection),
	}
	if s.ipv6 {
		kinds = append(kinds, s.traffic("tcp6-new", "TCP connections to a cluster IP, IPv6", toVIP("tcp", 1), load.OrderNew, connection))
	}
	return kinds
}

func (k kind) everyTime() kind {
	k.always = true
	return k
}

func (s suite) traffic(id, title string, f flow, what string, figures []figure) kind {
	k := kind{id: id, title: title, figures: figures, blocks: s.blocks, about: s.during}
	k.check = f.check
	k.slice = func(ctx context.Context, w *world) (bench.Sample, error) { return f.measure(ctx, w, what, s.during) }
	return k
}

// measure is one slice.
func (f flow) measure(ctx context.Context, w *world, what string, during time.Duration) (bench.Sample, error) {
	from := f.from(w)
	before, err := usage(ctx, from, w.server)
	if err != nil {
		return nil, err
	}
	r, err := from.order(ctx, load.Order{What: what, Network: f.network, To: f.target(w.candidate), During: during})
	if err != nil {
		return nil, err
	}
	after, err := usage(ctx, from, w.server)
	if err != nil {
		return nil, err
	}
	sample := bench.Sample{}
	for key, value := range r.Figures {
		sample[key] = []float64{value}
	}
	if n := r.Figures[load.Count]; n > 0 {
		sample[cpu] = []float64{float64((after - before).Nanoseconds()) / 1e3 / n}
	}
	return sample, nil
}

// usage is the processor time of several agents together.
func usage(ctx context.Context, agents ...*agent) (time.Duration, error) {
	var sum time.Duration
	for _, a := range agents {
		used, err := a.usage(ctx)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// programming are the kinds that measure the proxies themselves, but for the
// first, cold, which starts them.
func programming(s suite) []kind {
	return []kind{{
		id: "change", title: "One endpoint changed", proxies: true, always: true, blocks: s.changes, about: 200 * time.Millisecond,
		figures: []figure{{changed, "until the first connection to the new endpoint", "ms", false}, {resident, "resident memory of the proxy", "MB", false}},
		slice:   func(ctx context.Context, w *world) (bench.Sample, error) { return w.change(ctx, s.patience) },
	}, {
		id: "restart", title: "The proxy is killed and started again", proxies: true, always: true, noWarmUp: true, blocks: s.restarts, about: 2 * time.Second,
		figures: []figure{
			{warm, "until it has found everything in place", "ms", false},
			{failed, "connections that failed meanwhile, of 200 a second", "", false},
			{longest, "the longest of the others", "ms", false},
		},
		slice: func(ctx context.Context, w *world) (bench.Sample, error) { return w.restart(ctx, s.patience) },
	}}
}

// coldSync starts the proxies on a node without rules.
func coldSync(s suite) kind {
	return kind{
		id: "cold", title: "The proxy starts on a fresh node", proxies: true, always: true, noWarmUp: true, blocks: s.cold, about: 3 * time.Second,
		figures: []figure{{cold, "until all Services work", "ms", false}, {peak, "peak memory of the proxy", "MB", false}},
		slice:   func(ctx context.Context, w *world) (bench.Sample, error) { return w.coldSync(ctx, s.patience) },
	}
}

func (w *world) coldSync(ctx context.Context, limit time.Duration) (bench.Sample, error) {
	if err := w.cleanup(ctx); err != nil {
		return nil, err
	}
	began, err := w.startProxy()
	if err != nil {
		return nil, err
	}
	guarded, stop := w.guard(ctx, limit)
	defer stop()
	if err := w.awaitSynced(guarded); err != nil {
		return nil, err
	}
	took := load.Clock() - began
	// That it says so is not enough.
	vip := netip.AddrPortFrom(webVIP[0], vipPort)
	if _, err := w.pod.order(ctx, load.Order{What: load.OrderWho, Network: "tcp", To: vip, Count: 1}); err != nil {
		return nil, fmt.Errorf("after the proxy has said that everything is programmed: %w", err)
	}
	_, most, err := w.memory()
	if err != nil {
		return nil, err
	}
	return bench.Sample{cold: {milliseconds(took)}, peak: {most / 1e6}}, nil
}

// change has the Service switch lead to the other of two backends.
func (w *world) change(ctx context.Context, limit time.Duration) (bench.Sample, error) {
	next := map[string]string{"a": "b", "b": "a"}[w.switchedTo]
	objects := slicesOf("switch", next)
	began := load.Clock()
	w.api.Set(objects...)
	r, err := w.pod.order(ctx, load.Order{
		What: load.OrderUntil, To: netip.AddrPortFrom(switchVIP[0], vipPort), Server: next, During: limit,
	})
	if err != nil {
		return nil, err
	}
	w.switchedTo = next
	now, _, err := w.memory()
	if err != nil {
		return nil, err
	}
	return bench.Sample{changed: {milliseconds(r.At - began)}, resident: {now / 1e6}}, nil
}

// restart kills the proxy and starts it again, while connections are made.
func (w *world) restart(ctx context.Context, limit time.Duration) (bench.Sample, error) {
	vip := netip.AddrPortFrom(webVIP[0], vipPort)
	if err := w.pod.tell(load.Order{What: load.OrderSteady, To: vip}); err != nil {
		return nil, err
	}
	w.killProxy()
	began, err := w.startProxy()
	if err != nil {
		return nil, err
	}
	guarded, stop := w.guard(ctx, limit)
	defer stop()
	synced := w.awaitSynced(guarded)
	took := load.Clock() - began
	r, err := w.pod.order(ctx, load.Order{What: load.OrderStop})
	if err := errors.Join(synced, err); err != nil {
		return nil, err
	}
	return bench.Sample{
		warm: {milliseconds(took)}, failed: {float64(r.Loss.Failed)}, longest: {r.Loss.LongestMs},
	}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
