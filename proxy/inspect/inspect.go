// Package inspect lets an operator ask a running proxy what it knows: how it is,
// what its Services are on this node, and what becomes of a packet and why. The
// answers are the proxy's own Table, so that nothing is interpreted twice.
//
//	fairlead status | services | trace ──HTTP over a Unix socket──▶ Server ──▶ proxy.Proxy
//
// It changes nothing. The socket is root's alone: a Table tells much about a
// cluster.
package inspect

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// Facts are what does not change while the proxy runs.
type Facts struct {
	Version string    `json:"version"`
	Node    string    `json:"node"`
	Mode    string    `json:"mode"`            // how the kernel is programmed
	Why     string    `json:"why"`             // that is the mode
	Lacks   []string  `json:"lacks,omitempty"` // of the kernel, because of which something is not served
	Backend string    `json:"backend"`         // by what
	Source  string    `json:"source"`          // where objects come from
	Started time.Time `json:"started"`
}

// Status is how the proxy is.
type Status struct {
	Facts
	// Stale says why the source may not know of a change; "": it does.
	Stale string `json:"stale,omitempty"`
	// Heard is when the source was last heard of; zero: it is here, or silent so far.
	Heard time.Time `json:"heard,omitzero"`
	// Pending: there is something that the kernel does not have yet.
	Pending bool `json:"pending"`
	// Synced is when the kernel last took something, and Took for how long; zero:
	// never.
	Synced time.Time     `json:"synced"`
	Took   time.Duration `json:"tookNanoseconds"`
	// Error is why the kernel did not take what it was told last; "": it did.
	Error string `json:"error,omitempty"`
	// LastError is the last of these, also when it is over, and Failed when it was; zero:
	// there was none since the proxy started.
	LastError string    `json:"lastError,omitempty"`
	Failed    time.Time `json:"failed,omitzero"`

	// Outcomes are how sockets and packets have fared; none where the mode does not
	// count that.
	Outcomes []Outcome `json:"outcomes,omitempty"`

	Flows Flows `json:"flows"`
	// Busiest are the Service ports that get the most new connections, the first of
	// them first; none where nobody counts. Over is since when they are new: since
	// somebody last asked; 0 if that was long ago.
	Busiest []Busy        `json:"busiest,omitempty"`
	Over    time.Duration `json:"busiestOverNanoseconds,omitempty"`

	Frontends int `json:"frontends"` // destinations
	Pools     int `json:"pools"`
	Backends  int `json:"backends"` // of all pools, one by one
	// Conflicts are claims that were lost, Problems what is wrong with objects.
	Conflicts []string `json:"conflicts,omitempty"`
	// Quarantined are the Services that the kernel does not take.
	Quarantined []string `json:"quarantined,omitempty"`
	Problems    []string `json:"problems,omitempty"`
}

// Flows are how many there are. What is zero may not be counted in the mode.
type Flows struct {
	Packets int `json:"packets,omitempty"` // of the packet path
	Tracked int `json:"tracked,omitempty"` // by the kernel's connection tracking, Services' or not
}

// Busy is how many connections a Service port has got.
type Busy struct {
	Service     string `json:"service"` // namespace/name
	Port        string `json:"port,omitempty"`
	Connections uint64 `json:"connections"`
	New         uint64 `json:"new"` // of them, see Status.Over
}

// busiest is how many of them Status has at most.
const busiest = 5

// Healthy says whether the node's Services are as they should be.
func (s Status) Healthy() bool {
	return !s.Synced.IsZero() && s.Error == "" && s.Stale == ""
}

// View reads what the proxy knows while it stands still. It is a *proxy.Proxy.
type View interface {
	View(read func(*service.Resolver))
}

// Inspector gathers what it is told by the loop, as an Observer, and answers.
type Inspector struct {
	Facts
	Kernel
	View View
	// Stale, if set, says why the source may not know of a change.
	Stale func(now time.Time) error
	// Heard, if set, says when the source was last heard of.
	Heard func() time.Time
	Now   func() time.Time

	mu       sync.Mutex // guards all below
	pending  bool
	synced   time.Time
	took     time.Duration
	err      error
	last     error                  // not nil, once there was one
	failed   time.Time              // when last was
	problems map[watch.Problem]bool // that are not mended
	counted  [2]counting            // the last one, after the one before
}

// News implements proxy.Observer.
func (i *Inspector) News(news watch.News) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pending = true
	if i.problems == nil {
		i.problems = map[watch.Problem]bool{}
	}
	for _, p := range news.Problems {
		i.problems[p] = true
	}
	for _, p := range news.Mended {
		delete(i.problems, p)
	}
}

// Synced implements proxy.Observer.
func (i *Inspector) Synced(r proxy.Round) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = r.Err
	if r.Err != nil {
		i.last, i.failed = r.Err, i.Now()
		return
	}
	i.synced, i.took = i.Now(), r.Took
}

// UpToDate implements proxy.Observer.
func (i *Inspector) UpToDate(proxy.LeftOut) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pending = false
}

// Status is how the proxy is now.
func (i *Inspector) Status() Status {
	s := i.told()
	if i.Stale != nil {
		if err := i.Stale(i.Now()); err != nil {
			s.Stale = err.Error()
		}
	}
	if i.Heard != nil {
		s.Heard = i.Heard()
	}
	i.count(&s)
	i.countBusiest(&s)
	i.View.View(func(r *service.Resolver) {
		t := r.Table()
		s.Frontends, s.Pools = len(t.Frontends), len(t.Pools)
		for _, pool := range t.Pools {
			s.Backends += len(pool.Backends)
		}
		for _, c := range r.Conflicts() {
			s.Conflicts = append(s.Conflicts, c.String())
		}
		for _, name := range r.Quarantined() {
			s.Quarantined = append(s.Quarantined, name.String())
		}
	})
	return s
}

func (i *Inspector) told() Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	s := Status{Facts: i.Facts, Pending: i.pending, Synced: i.synced, Took: i.took}
	if i.err != nil {
		s.Error = i.err.Error()
	}
	if i.last != nil {
		s.LastError, s.Failed = i.last.Error(), i.failed
	}
	for p := range i.problems {
		if !p.Note {
			s.Problems = append(s.Problems, p.String())
		}
	}
	slices.Sort(s.Problems)
	return s
}

// Row is one destination and what becomes of flows to it.
type Row struct {
	Service     string           `json:"service"` // namespace/name
	Port        string           `json:"port,omitempty"`
	Destination netip.AddrPort   `json:"destination,omitzero"` // unspecified address: every node-port address
	Protocol    service.Protocol `json:"protocol,omitzero"`
	Sources     []netip.Prefix   `json:"sources,omitempty"` // who alone may send
	Paths       [3]Path          `json:"paths,omitzero"`    // of pods, this node, outside
	// Connections is how many flows the Service port has got; nil: nobody counts them.
	Connections *uint64 `json:"connections,omitempty"`
	// Kernel says, with the last row of each Service, in what way the kernel has not what
	// it should; none: it has.
	Kernel []string `json:"kernel,omitempty"`
}

// origin is the Service port.
func (r Row) origin() service.Origin {
	namespace, name, _ := strings.Cut(r.Service, "/")
	return service.Origin{Service: service.Name{Namespace: namespace, Name: name}, Port: r.Port}
}

// Path is what becomes of the flows of one class of sender.
type Path struct {
	Sender     service.Class    `json:"sender"`
	Verdict    service.Verdict  `json:"verdict"`
	Masquerade bool             `json:"masquerade"`
	Affinity   time.Duration    `json:"affinityNanoseconds,omitempty"`
	Backends   []netip.AddrPort `json:"backends,omitempty"`
}

// Services are the rows of the Services that wanted names, with what the kernel has in
// their place.
func (i *Inspector) Services(ctx context.Context, wanted func(service.Name) bool) ([]Row, error) {
	return i.addKernel(ctx, i.Told(wanted), wanted)
}

// Told are the rows of the Services that wanted names, sorted by Service, destination
// and protocol: what the kernel was told.
func (i *Inspector) Told(wanted func(service.Name) bool) []Row {
	rows := []Row{}
	i.View.View(func(r *service.Resolver) {
		t := r.Table()
		for key, f := range t.Frontends {
			if wanted(f.Origin.Service) {
				rows = append(rows, rowOf(t, key, f))
			}
		}
	})
	slices.SortFunc(rows, func(a, b Row) int {
		return cmp.Or(a.origin().Service.Compare(b.origin().Service), a.Destination.Compare(b.Destination), cmp.Compare(a.Protocol, b.Protocol))
	})
	return rows
}

func rowOf(t *service.Table, key service.Key, f service.Frontend) Row {
	row := Row{
		Service: f.Origin.Service.String(), Port: f.Origin.Port,
		Destination: netip.AddrPortFrom(key.Addr, key.Port), Protocol: key.Protocol,
		Sources: f.Sources,
	}
	for class, p := range f.Paths {
		pool := t.Pools[p.Pool]
		row.Paths[class] = Path{
			Sender: service.Class(class), Verdict: p.Verdict, Masquerade: p.Masquerade,
			Affinity: pool.Affinity, Backends: slices.Clone(pool.Backends),
		}
	}
	return row
}

// Led is what becomes of a flow, and why.
type Led struct {
	service.Explanation
	// Path is how the flow is led, as in Event.Path; "" where it is not, or nobody knows.
	Path string `json:"path,omitempty"`
	// Next is the endpoint whose turn is the next; not valid where nobody knows.
	Next netip.AddrPort `json:"next,omitzero"`
}

// Traced is what becomes of a flow, and why, and whether the kernel has it so.
type Traced struct {
	Led
	Service string `json:"service,omitempty"` // whose the destination is: namespace/name:port
	// Unsure says why it is not known whether the sender's socket is on this node. Then IfHere
	// is what becomes of the flow if it is, and Led if it is not.
	Unsure string `json:"unsure,omitempty"`
	IfHere *Led   `json:"ifHere,omitempty"`
	// Kernel says in what way the kernel has not what it should of that Service, and of
	// what is no single one's; none: it has.
	Kernel []string `json:"kernel,omitempty"`
	Unread string   `json:"unread,omitempty"` // why the kernel was not read back
}

// next is the endpoint that the next flow goes to which begins with p.
func (i *Inspector) next(t *service.Table, p service.Packet) netip.AddrPort {
	d := t.Lookup(p)
	if i.Turns == nil || len(d.Backends) == 0 {
		return netip.AddrPort{}
	}
	for _, key := range t.Keys(p.Dst, p.Protocol) {
		if taken, ok := i.Turns(key, d.Class); ok {
			return d.Backends[taken%uint64(len(d.Backends))]
		}
	}
	return netip.AddrPort{}
}

// led is what becomes of the flow that p begins, by a path. A socket that has its endpoint
// already sends packets as to anybody: none of them is masqueraded for the Service's sake.
func (i *Inspector) led(r *service.Resolver, p service.Packet, path string) Led {
	p.Pod = path == bySocket
	l := Led{Explanation: r.Explain(p), Next: i.next(r.Table(), p)}
	if l.Verdict != service.Forward {
		return l
	}
	if l.Path = path; path != bySocket {
		i.leave(&l)
		return l
	}
	l.Masquerade = "no: the socket is connected to the endpoint itself"
	if l.Class == service.FromNode {
		l.Masquerade += ", from the node's address on the way there"
	}
	for n := range l.Endpoints {
		l.Endpoints[n].Masquerade = false
	}
	return l
}

// bySocket is a path.
const bySocket = "socket"

// path says how the kernel leads the flow that p begins, and why that may not be so. It
// looks around, which takes its time.
func (i *Inspector) path(p service.Packet, routed bool) (path string, unsure error) {
	var f service.Frontend
	var class service.Class
	found := false
	i.View.View(func(r *service.Resolver) {
		f, found = r.Table().Frontend(p.Dst, p.Protocol)
		class = r.Table().Class(p.Src.Unmap(), p.In)
	})
	if !found || i.Path == nil {
		return "", nil
	}
	return i.Path(f, p, class, routed)
}

// leave adds who of the endpoints is outside the cluster, and sees no pod for that reason.
func (i *Inspector) leave(l *Led) {
	if i.Leaves == nil || l.Class != service.FromPod {
		return
	}
	for n, e := range l.Endpoints {
		if e.Turns && !e.Masquerade && i.Leaves(e.Addr.Addr()) {
			l.Endpoints[n].Masquerade, l.Endpoints[n].Why = true, "it is outside the cluster, where nobody knows the way back to a pod"
		}
	}
}

// Trace says what becomes of a packet, as the Table has it and as far as the kernel has
// the Table. routed: it comes from behind a router.
func (i *Inspector) Trace(ctx context.Context, p service.Packet, routed bool) (t Traced) {
	path, unsure := i.path(p, routed)
	i.View.View(func(r *service.Resolver) {
		t.Led = i.led(r, p, path)
		if unsure != nil {
			here := i.led(r, p, bySocket)
			t.Unsure, t.IfHere = unsure.Error(), &here
		}
	})
	if t.Verdict != service.Pass {
		t.Service = t.Origin.String()
	}
	if i.Differences == nil {
		return t
	}
	differences, err := i.Differences(ctx)
	if err != nil {
		t.Unread = err.Error()
		return t
	}
	t.Kernel = differences[service.Name{}]
	if t.Verdict != service.Pass {
		t.Kernel = append(t.Kernel, differences[t.Origin.Service]...)
	}
	return t
}
