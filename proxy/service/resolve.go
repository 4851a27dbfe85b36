package service

import (
	"cmp"
	"net/netip"
	"slices"
)

// place is what resolve must know of this node.
type place struct {
	node, zone string
	addrs      []netip.Addr
	// pods are the ranges of pods. In a family without one nobody can be told
	// from a pod, but podsElse: by something else.
	pods     []netip.Prefix
	podsElse bool

	masqueradeAll, rangesForNodes bool // see Config
}

// has says whether an address is this node's or one of a range of pods.
func (h place) has(addr netip.Addr) bool {
	return slices.Contains(h.addrs, addr) || slices.ContainsFunc(h.pods, func(p netip.Prefix) bool { return p.Contains(addr) })
}

func (h place) podsKnown(ipv6 bool) bool {
	return h.podsElse || slices.ContainsFunc(h.pods, func(p netip.Prefix) bool { return p.Addr().Is6() == ipv6 })
}

// rows is what one Service contributes to the Table.
type rows struct {
	created   int64 // of the Service, in nanoseconds: orders claims
	frontends map[Key]Frontend
	pools     map[PoolID]Pool
	clashes   []Conflict // between two ports of the Service
	check     HealthCheck
}

// resolve gives one Service its meaning. from are the slices of the Service.
func resolve(svc *Service, from []*Slice, here place) rows {
	out := rows{
		frontends: map[Key]Frontend{},
		pools:     map[PoolID]Pool{},
	}
	if !svc.Created.IsZero() {
		out.created = svc.Created.UnixNano()
	}
	if svc.ExternalLocal && svc.HealthCheckPort != 0 {
		ipv6 := len(svc.ClusterIPs) > 0 && svc.ClusterIPs[0].Is6() // the family that the Service prefers
		out.check = HealthCheck{Port: svc.HealthCheckPort, Local: localReady(from, ipv6, here)}
	}
	for _, port := range svc.Ports {
		for _, ipv6 := range []bool{false, true} {
			p := portRows{
				rows: &out, svc: svc, port: port, ipv6: ipv6, here: here,
				choice: choose(endpointsOf(port.Port, ipv6, from, here)),
			}
			if len(p.mine(svc.ClusterIPs)) > 0 { // else the Service has not this family
				p.resolve()
			}
		}
	}
	return out
}

// portRows adds the rows of one port of a Service in one family.
type portRows struct {
	*rows
	choice
	svc  *Service
	port ServicePort
	ipv6 bool
	here place
}

// resolve adds a frontend for everything that leads to the port.
func (p *portRows) resolve() {
	for _, addr := range p.mine(p.svc.ClusterIPs) {
		p.frontend(addr, p.port.Number, p.internal())
	}
	for _, addr := range p.mine(p.svc.ExternalIPs) {
		p.frontend(addr, p.port.Number, p.external())
	}
	for _, addr := range p.mine(p.svc.LoadBalancerIPs) {
		p.frontend(addr, p.port.Number, p.restricted(addr))
	}
	if p.port.NodePort != 0 {
		p.frontend(AnyNodeAddr(p.ipv6), p.port.NodePort, p.nodePort())
	}
}

// mine are the addresses of this family.
func (p *portRows) mine(addrs []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return a.Is6() != p.ipv6 })
}

// internal is what becomes of flows to the cluster IP. Those of pods keep their
// source. One from outside the cluster is masqueraded: its reply would otherwise
// take a way that does not lead through this node, where the address is
// translated back. So is one of the node's own, whose source was chosen for the
// way to the cluster IP and may be the wrong one on the way to the backend.
func (p *portRows) internal() Frontend {
	local, all := p.svc.InternalLocal, p.here.masqueradeAll
	others := all || p.here.podsKnown(p.ipv6)
	return Frontend{Paths: Paths{
		FromPod:     p.path(local, all),
		FromNode:    p.path(local, others),
		FromOutside: p.path(local, others),
	}}
}

// external is what becomes of flows to all other addresses of the Service.
//
// Under the policy Cluster any backend anywhere may get the flow, so that the
// reply comes back here only if it is masqueraded. Under the policy Local the
// flows of outsiders stay on this node and keep their source. Flows of this
// node's pods, and its own, are treated as if they had gone out to a load
// balancer and come back to whichever node has endpoints; the node's own are
// masqueraded, since their source may be the very address that they ask, where
// it is a local one.
func (p *portRows) external() Frontend {
	if !p.svc.ExternalLocal {
		anywhere := p.path(false, true)
		return Frontend{Paths: Paths{anywhere, anywhere, anywhere}}
	}
	return Frontend{Paths: Paths{
		FromPod:     p.path(false, false),
		FromNode:    p.path(false, true),
		FromOutside: p.path(true, false),
	}}
}

// nodePort is external, restricted if so configured. The node asks itself from
// the address that it asks.
func (p *portRows) nodePort() Frontend {
	if !p.here.rangesForNodes {
		return p.external()
	}
	return p.allowed()
}

// restricted is external for those whom the Service's source ranges allow. A
// node that is allowed is so too when its source is the load balancer's address,
// which it is where that is a local address of the node.
func (p *portRows) restricted(addr netip.Addr) Frontend {
	f := p.allowed()
	if len(f.Sources) > 0 && slices.ContainsFunc(p.here.addrs, f.Admits) {
		f.Sources = append(f.Sources, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return f
}

// allowed is external for those in the Service's source ranges. Ranges of the
// other family only do not open the Service to this one.
func (p *portRows) allowed() Frontend {
	f := p.external()
	if len(p.svc.SourceRanges) == 0 {
		return f
	}
	for _, r := range p.svc.SourceRanges {
		if r.Addr().Is6() == p.ipv6 {
			f.Sources = append(f.Sources, r)
		}
	}
	if len(f.Sources) == 0 {
		drop := Path{Verdict: Drop}
		return Frontend{Paths: Paths{drop, drop, drop}}
	}
	return f
}

// path leads to the endpoints of a policy. Without one the sender is told so, but
// if there are endpoints elsewhere, which the policy forbids, the flow is dropped
// in silence: whoever sent it here may yet learn to send it there.
func (p *portRows) path(local, masquerade bool) Path {
	backends := p.cluster
	if local {
		backends = p.local
	}
	switch {
	case len(backends) > 0:
		id := PoolID{Origin: p.origin(), IPv6: p.ipv6, Local: local}
		if slices.Equal(backends, p.serving) {
			backends = p.serving // as almost always; one copy is enough
		}
		p.pools[id] = Pool{
			Protocol: p.port.Protocol, Backends: backends, Serving: p.serving, Affinity: p.svc.Affinity,
			Reset:    p.svc.ResetOnRemoval && p.port.Protocol == TCP,
			External: p.externals(backends),
		}
		return Path{Verdict: Forward, Pool: id, Masquerade: masquerade}
	case p.any:
		return Path{Verdict: Drop}
	}
	return Path{Verdict: Reject}
}

// externals are the addresses of those backends that are nowhere in the cluster, as far
// as is known here: of a pod its slice says on which node it is.
func (p *portRows) externals(backends []netip.AddrPort) []netip.Addr {
	var out []netip.Addr
	for _, e := range p.unplaced {
		_, chosen := slices.BinarySearchFunc(backends, e, netip.AddrPort.Compare)
		if chosen && !p.here.has(e.Addr()) && (len(out) == 0 || out[len(out)-1] != e.Addr()) {
			out = append(out, e.Addr())
		}
	}
	return out
}

func (p *portRows) origin() Origin { return Origin{Service: p.svc.Name, Port: p.port.Name} }

func (p *portRows) frontend(addr netip.Addr, port uint16, f Frontend) {
	f.Origin = p.origin()
	key := Key{Addr: addr, Port: port, Protocol: p.port.Protocol}
	first, taken := p.frontends[key]
	switch {
	case !taken:
		p.frontends[key] = f
	case first.Origin != f.Origin:
		p.clashes = append(p.clashes, Conflict{Key: key, Winner: first.Origin, Loser: f.Origin})
	}
}

// Conflict is a destination that two Service ports claim. The older Service has
// it, by creation time, then by name; within a Service the port listed first.
type Conflict struct {
	Key           Key
	Winner, Loser Origin
}

// Compare orders by destination, then by loser.
func (c Conflict) Compare(d Conflict) int {
	return cmp.Or(
		c.Key.Compare(d.Key),
		c.Loser.Service.Compare(d.Loser.Service),
		cmp.Compare(c.Loser.Port, d.Loser.Port))
}
