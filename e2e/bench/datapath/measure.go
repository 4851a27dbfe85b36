package datapath

import (
	"context"
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
	with    numbers
	// check, if there is one, is what must be right before the figures count.
	check func(ctx context.Context, w *world) Check
	slice func(ctx context.Context, w *world) (bench.Sample, error)
	// blocks is how many are measured, and about how long a slice takes.
	blocks int
	about  time.Duration
	// noWarmUp: see bench.Blocks.
	noWarmUp bool
}

// numbers says with which of the numbers of Services a kind is measured.
type numbers int

const (
	theFirst numbers = iota
	all
	theLast
)

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
	slowest   = "slowest change"
	resident  = "resident"
	mapsSize  = "maps"
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
	k.with = all
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

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
