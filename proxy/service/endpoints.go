package service

import (
	"maps"
	"net/netip"
	"slices"
)

// endpoint is one address and port that serves a Service port.
type endpoint struct {
	addr    netip.AddrPort
	ready   bool
	lasting bool // still serves while it terminates
	serving bool // whatever else it is
	here    bool // on this node
	placed  bool // a slice says on which node it is
	// forThisNode and forThisZone say whom the hints name, if they name anybody.
	nodeHint, zoneHint       bool
	forThisNode, forThisZone bool
}

// endpointsOf collects what the slices offer for a port in one family, sorted by
// address and without duplicates. While an endpoint moves from one slice to
// another both list it; it is then as good as the better of the two.
func endpointsOf(port Port, ipv6 bool, from []*Slice, here place) []endpoint {
	found := map[netip.AddrPort]endpoint{}
	for _, slice := range from {
		i := slices.IndexFunc(slice.Ports, func(p Port) bool {
			return p.Name == port.Name && p.Protocol == port.Protocol
		})
		if i < 0 {
			continue
		}
		for _, e := range slice.Endpoints {
			if e.Addr.Is6() == ipv6 {
				addr := netip.AddrPortFrom(e.Addr, slice.Ports[i].Number)
				found[addr] = found[addr].or(addr, e, here)
			}
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b endpoint) int {
		return a.addr.Compare(b.addr)
	})
}

// or is the better of what was known of an endpoint and what a slice says of it.
func (known endpoint) or(addr netip.AddrPort, e Endpoint, here place) endpoint {
	return endpoint{
		addr:        addr,
		ready:       known.ready || e.Ready,
		lasting:     known.lasting || (e.Serving && e.Terminating),
		serving:     known.serving || e.Ready || e.Serving,
		here:        known.here || (here.node != "" && e.Node == here.node),
		placed:      known.placed || e.Node != "",
		nodeHint:    known.nodeHint || len(e.ForNodes) > 0,
		zoneHint:    known.zoneHint || len(e.ForZones) > 0,
		forThisNode: known.forThisNode || slices.Contains(e.ForNodes, here.node),
		forThisZone: known.forThisZone || slices.Contains(e.ForZones, here.zone),
	}
}

// choice is which endpoints get new flows, and by what they were picked.
type choice struct {
	cluster   []netip.AddrPort // under the traffic policy Cluster
	local     []netip.AddrPort // under the traffic policy Local
	serving   []netip.AddrPort // all that do, whether they get new flows or not
	unplaced  []netip.AddrPort // all of which no slice says on which node they are
	any       bool             // there is a usable endpoint somewhere in the cluster
	clusterBy criterion
	localBy   criterion
}

// criterion is what endpoints that get new flows have in common.
type criterion uint8

const (
	noneServes criterion = iota
	areReady
	hintNode
	hintZone
	stillServe
)

func (c criterion) String() string {
	return [...]string{
		"none is ready, and none that terminates still serves",
		"ready ones",
		"ready ones whose hints name this node",
		"ready ones whose hints name this zone",
		"none is ready, but ones that terminate still serve",
	}[c]
}

// choose picks the endpoints of each policy: the ready ones (of those that the
// hints give to this node or zone); if there is none, those that still serve
// while they terminate (KEP-1669), for each policy by itself.
func choose(all []endpoint) choice {
	ready, lasting := pick(all, func(e endpoint) bool { return e.ready }), pick(all, func(e endpoint) bool { return !e.ready && e.lasting })
	here := func(e endpoint) bool { return e.here }
	c := choice{
		serving:  addrs(pick(all, func(e endpoint) bool { return e.serving })),
		unplaced: addrs(pick(all, func(e endpoint) bool { return !e.placed })),
		any:      len(ready)+len(lasting) > 0,
	}
	c.cluster, c.clusterBy = firstOf(hinted(ready), lasting)
	c.local, c.localBy = firstOf(picked{pick(ready, here), areReady}, pick(lasting, here))
	return c
}

// picked are endpoints and what they have in common.
type picked struct {
	endpoints []endpoint
	by        criterion
}

// hinted picks the ready endpoints that their hints give to this node, else to
// this zone. Hints count only if every endpoint has them and one is for us: if
// not, the EndpointSlice controller has not caught up yet, and to follow them
// would overload or starve somebody.
func hinted(ready []endpoint) picked {
	missing := func(has func(endpoint) bool) bool {
		return slices.ContainsFunc(ready, func(e endpoint) bool { return !has(e) })
	}
	if !missing(func(e endpoint) bool { return e.nodeHint }) {
		if ours := pick(ready, func(e endpoint) bool { return e.forThisNode }); len(ours) > 0 {
			return picked{ours, hintNode}
		}
	}
	if !missing(func(e endpoint) bool { return e.zoneHint }) {
		if ours := pick(ready, func(e endpoint) bool { return e.forThisZone }); len(ours) > 0 {
			return picked{ours, hintZone}
		}
	}
	return picked{ready, areReady}
}

func pick(from []endpoint, wanted func(endpoint) bool) []endpoint {
	var out []endpoint
	for _, e := range from {
		if wanted(e) {
			out = append(out, e)
		}
	}
	return out
}

// firstOf are the ready ones, else those that still serve.
func firstOf(ready picked, lasting []endpoint) ([]netip.AddrPort, criterion) {
	switch {
	case len(ready.endpoints) > 0:
		return addrs(ready.endpoints), ready.by
	case len(lasting) > 0:
		return addrs(lasting), stillServe
	}
	return nil, noneServes
}

func addrs(from []endpoint) []netip.AddrPort {
	out := slices.Grow([]netip.AddrPort(nil), len(from)) // kept for long: no room in vain
	for _, e := range from {
		out = append(out, e.addr)
	}
	return out
}

// localReady counts the addresses of this node's ready endpoints in one family.
func localReady(from []*Slice, ipv6 bool, here place) int {
	found := map[netip.Addr]bool{}
	for _, slice := range from {
		for _, e := range slice.Endpoints {
			if e.Ready && e.Addr.Is6() == ipv6 && here.node != "" && e.Node == here.node {
				found[e.Addr] = true
			}
		}
	}
	return len(found)
}
