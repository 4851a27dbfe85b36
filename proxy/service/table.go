package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Table says for every destination that is a Service's what becomes of a new
// flow. It is flat: a backend compiles it row by row and has nothing left to
// interpret.
//
//	Frontend ──(class of sender)──▶ Path ──▶ Pool ──(in turn)──▶ backend
//
// Lookup is its executable specification.
type Table struct {
	Frontends map[Key]Frontend // by destination
	Pools     map[PoolID]Pool  // every one that a Path names is here
	// PodCIDRs, or in their place PodInterfaces, and NodeAddrs tell the classes of
	// senders apart. With neither of the former pods are not known, and whoever is
	// not the node counts as outside.
	PodCIDRs  []netip.Prefix
	NodeAddrs []netip.Addr
	// OwnPodCIDRs are the ranges of this node's pods, whatever pods are known by.
	OwnPodCIDRs []netip.Prefix
	// PodInterfaces are the names of interfaces of the node by which packets of
	// pods come in. One that ends in + stands for all that begin with the rest.
	PodInterfaces []string
	// HealthChecks are the Services about which load balancers ask this node.
	HealthChecks map[Name]HealthCheck
	// NodePortCIDRs say which of the node's own addresses are meant by a Key with
	// AnyNodeAddr.
	NodePortCIDRs []netip.Prefix
	// LocalhostNodePorts: AnyNodeAddr means 127.0.0.0/8 too, for the node itself.
	// (Never ::1, from which the kernel lets no packet leave.)
	LocalhostNodePorts bool
}

// Key is what a packet must carry to belong to a Frontend.
type Key struct {
	Addr     netip.Addr // may be AnyNodeAddr
	Port     uint16
	Protocol Protocol
}

// AnyNodeAddr is the unspecified address, which stands in a Key for every address
// of the node that is in Table.NodePortCIDRs. A Key with the address itself goes
// first.
func AnyNodeAddr(ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

func (k Key) String() string {
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.Addr, k.Port), k.Protocol)
}

// Compare orders by address (IPv4 first), port, protocol.
func (k Key) Compare(l Key) int {
	return cmp.Or(k.Addr.Compare(l.Addr), cmp.Compare(k.Port, l.Port), cmp.Compare(k.Protocol, l.Protocol))
}

// Class is what kind of sender a packet comes from.
type Class uint8

// The classes of senders.
const (
	FromPod     Class = iota // an address in Table.PodCIDRs, or by one of Table.PodInterfaces
	FromNode                 // this node itself: an address in Table.NodeAddrs or a loopback one
	FromOutside              // any other
)

func (c Class) String() string { return [...]string{"pod", "node", "outside"}[c] }

// Frontend is what becomes of flows to one Key.
type Frontend struct {
	Paths Paths
	// Sources are who may send, sorted as given; empty: everybody. Flows of all
	// others are dropped.
	Sources []netip.Prefix
	Origin  Origin
}

// Paths has a Path for each class of sender.
type Paths [3]Path

// Admits says whether the frontend's sources include src.
func (f Frontend) Admits(src netip.Addr) bool {
	return len(f.Sources) == 0 ||
		slices.ContainsFunc(f.Sources, func(p netip.Prefix) bool { return p.Contains(src) })
}

func (f Frontend) equal(g Frontend) bool {
	return f.Paths == g.Paths && f.Origin == g.Origin && slices.Equal(f.Sources, g.Sources)
}

// Origin is the Service port that a row comes from.
type Origin struct {
	Service Name
	Port    string // the port's name, may be ""
}

func (o Origin) String() string {
	if o.Port == "" {
		return o.Service.String()
	}
	return o.Service.String() + ":" + o.Port
}

// Compare orders by Service, then by port name.
func (o Origin) Compare(p Origin) int {
	return cmp.Or(o.Service.Compare(p.Service), cmp.Compare(o.Port, p.Port))
}

// Path is what becomes of a new flow.
type Path struct {
	Verdict Verdict
	Pool    PoolID // with Forward
	// Masquerade: the backend sees an address of this node instead of the
	// sender's. (Whatever it says, a flow that is led back to its own sender
	// is masqueraded: see Decision.Masquerades.)
	Masquerade bool
}

// Verdict is the outcome of a lookup.
type Verdict uint8

// The verdicts.
const (
	Pass    Verdict = iota // no Service's destination: not ours to touch
	Forward                // to the next backend of the pool
	Reject                 // tell the sender: TCP RST, else ICMP port unreachable
	Drop                   // say nothing
)

func (v Verdict) String() string { return [...]string{"pass", "forward", "reject", "drop"}[v] }

// PoolID names a pool. Frontends of one Service port share pools.
type PoolID struct {
	Origin
	IPv6  bool
	Local bool // the endpoints of this node only
}

func (id PoolID) String() string {
	s := id.Origin.String() + "/ipv4"
	if id.IPv6 {
		s = id.Origin.String() + "/ipv6"
	}
	if id.Local {
		s += "/local"
	}
	return s
}

// Compare orders by Service, port name, family, and all before local.
func (id PoolID) Compare(other PoolID) int {
	return cmp.Or(
		id.Origin.Compare(other.Origin),
		cmp.Compare(b2i(id.IPv6), b2i(other.IPv6)),
		cmp.Compare(b2i(id.Local), b2i(other.Local)))
}

// Pool is a set of backends that take turns: of any N new flows in a row, N
// being the number of backends, each gets one.
type Pool struct {
	Protocol Protocol
	Backends []netip.AddrPort // sorted, no duplicates, at least one, one family
	// Serving are the endpoints that serve, sorted: Backends, and those that get no
	// new flows because they terminate, or a policy or hint is against them. Flows
	// that they have may go on.
	Serving []netip.AddrPort
	// Affinity: a sender whose last flow is no longer ago than this goes to the
	// same backend again, out of turn. 0: it does not.
	Affinity time.Duration
	// Reset: TCP connections to a backend that serves no more are reset. Else they
	// may finish what they have begun, as far as the backend does.
	Reset bool
	// External are the addresses of Backends that are on no node of the cluster, sorted.
	External []netip.Addr
}

// HealthCheck is what a load balancer is told that asks for the endpoints of a
// Service on this node.
type HealthCheck struct {
	Port  uint16 // where it asks, over HTTP
	Local int    // endpoints that are ready, by address
}

// Packet is the first packet of a flow.
type Packet struct {
	Src      netip.Addr
	Dst      netip.AddrPort
	Protocol Protocol
	In       string // the interface that it came in by; "" if it is the node's own
	// Pod says that whoever sends it is in a network namespace of this node other than the
	// node's, and so a pod, whatever its address: a socket tells so, a packet does not.
	Pod bool
}

// Decision is what Lookup says of a packet.
type Decision struct {
	Verdict    Verdict
	Origin     Origin           // of the frontend, unless Pass
	Class      Class            // of the sender
	Backends   []netip.AddrPort // with Forward: they take turns
	Affinity   time.Duration    // as in Pool
	masquerade bool
	src        netip.Addr
}

// Masquerades says whether backend b, one of d.Backends, sees an address of the
// node instead of the sender's. Beside the Path, the hairpin decides: a sender
// that is its own backend would otherwise get a packet from itself.
func (d Decision) Masquerades(b netip.AddrPort) bool {
	return d.Verdict == Forward && (d.masquerade || d.src == b.Addr())
}

// Lookup is the specification of every backend: what becomes of a new flow that
// starts with p.
func (t *Table) Lookup(p Packet) Decision {
	src := p.Src.Unmap()
	f, ok := t.Frontend(p.Dst, p.Protocol)
	if !ok {
		return Decision{Verdict: Pass}
	}
	class := t.classOf(p)
	path := f.Paths[class]
	if !f.Admits(src) {
		path = Path{Verdict: Drop}
	}
	return Decision{
		Verdict:    path.Verdict,
		Origin:     f.Origin,
		Class:      class,
		Backends:   t.Pools[path.Pool].Backends,
		Affinity:   t.Pools[path.Pool].Affinity,
		masquerade: path.Masquerade,
		src:        src,
	}
}

// Keys are the Keys that a destination answers to, the one that counts more
// first.
func (t *Table) Keys(dst netip.AddrPort, protocol Protocol) []Key {
	addr := dst.Addr().Unmap()
	keys := []Key{{addr, dst.Port(), protocol}}
	if t.hasNodePorts(addr) {
		keys = append(keys, Key{AnyNodeAddr(addr.Is6()), dst.Port(), protocol})
	}
	return keys
}

// Has says whether there is a pool.
func (t *Table) Has(id PoolID) bool {
	_, ok := t.Pools[id]
	return ok
}

// Frontend finds the frontend of a destination.
func (t *Table) Frontend(dst netip.AddrPort, protocol Protocol) (Frontend, bool) {
	_, f, ok := t.match(dst, protocol)
	return f, ok
}

// match is Frontend with its Key.
func (t *Table) match(dst netip.AddrPort, protocol Protocol) (Key, Frontend, bool) {
	for _, key := range t.Keys(dst, protocol) {
		if f, ok := t.Frontends[key]; ok {
			return key, f, true
		}
	}
	return Key{}, Frontend{}, false
}

// Serves says whether a flow to dst that is with a backend may go on with it,
// whether it would get it today or not.
func (t *Table) Serves(dst netip.AddrPort, protocol Protocol, backend netip.AddrPort) bool {
	f, ok := t.Frontend(dst, protocol)
	return ok && slices.ContainsFunc(f.Paths[:], func(p Path) bool {
		return p.Verdict == Forward && slices.Contains(t.Pools[p.Pool].Serving, backend)
	})
}

// Resets says whether connections to dst are reset when their backend serves no
// more.
func (t *Table) Resets(dst netip.AddrPort, protocol Protocol) bool {
	f, ok := t.Frontend(dst, protocol)
	return ok && slices.ContainsFunc(f.Paths[:], func(p Path) bool {
		return p.Verdict == Forward && t.Pools[p.Pool].Reset
	})
}

// Class tells what kind of sender has the address src and is behind the interface
// in ("" is the node itself).
func (t *Table) Class(src netip.Addr, in string) Class {
	switch {
	case src.IsLoopback() || slices.Contains(t.NodeAddrs, src):
		return FromNode
	case slices.ContainsFunc(t.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(src) }),
		in != "" && t.PodInterface(in):
		return FromPod
	}
	return FromOutside
}

// classOf is the class of a packet's sender.
func (t *Table) classOf(p Packet) Class {
	class := t.Class(p.Src.Unmap(), p.In)
	if class == FromOutside && p.Pod {
		return FromPod
	}
	return class
}

// PodInterface says whether packets that come in by an interface are pods'.
func (t *Table) PodInterface(name string) bool {
	return slices.ContainsFunc(t.PodInterfaces, func(pattern string) bool { return matches(pattern, name) })
}

// matches says whether a pattern of PodInterfaces means an interface.
func matches(pattern, name string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "+"); ok {
		return strings.HasPrefix(name, prefix)
	}
	return pattern == name
}

// hasNodePorts says whether dst is an address of the node that AnyNodeAddr means.
func (t *Table) hasNodePorts(dst netip.Addr) bool {
	if dst.IsLoopback() {
		return t.LocalhostNodePorts && dst.Is4()
	}
	return slices.Contains(t.NodeAddrs, dst) &&
		slices.ContainsFunc(t.NodePortCIDRs, func(p netip.Prefix) bool { return p.Contains(dst) })
}

// Change names the rows that differ from an earlier Table; a row that is named
// and not in the Table is gone.
type Change struct {
	Frontends []Key    // sorted
	Pools     []PoolID // sorted
	Node      bool     // PodCIDRs, OwnPodCIDRs, NodeAddrs or NodePortCIDRs
	// HealthChecks are the Services with another HealthCheck, sorted.
	HealthChecks []Name
}

// Empty says that nothing changed.
func (c Change) Empty() bool {
	return len(c.Frontends) == 0 && len(c.Pools) == 0 && len(c.HealthChecks) == 0 && !c.Node
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
