package service

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// rows is what one Service contributes to the Table.
type rows struct {
	created   int64 // of the Service, in nanoseconds: orders claims
	frontends map[Key]Frontend
	pools     map[PoolID]Pool
	clashes   []Conflict // between two ports of the Service
}

// resolve gives one Service its meaning. from are the slices of the Service;
// outsideKnown says that senders outside the cluster can be told from pods.
func resolve(svc *Service, from []*Slice, outsideKnown bool) rows {
	out := rows{
		frontends: map[Key]Frontend{},
		pools:     map[PoolID]Pool{},
	}
	if !svc.Created.IsZero() {
		out.created = svc.Created.UnixNano()
	}
	for _, port := range svc.Ports {
		endpoints := endpointsOf(port, from)
		for _, addr := range svc.ClusterIPs {
			out.clusterIP(svc, port, addr, endpoints, outsideKnown)
		}
	}
	return out
}

// clusterIP adds the frontend of one cluster IP and port, and its pool.
//
// A flow from outside the cluster is masqueraded: its reply would otherwise take
// a way that does not lead through this node, where the address is translated
// back.
func (r *rows) clusterIP(svc *Service, port ServicePort, addr netip.Addr, eps []endpoint, outsideKnown bool) {
	origin := Origin{Service: svc.Name, Port: port.Name}
	frontend := Frontend{Origin: origin}
	id := PoolID{Origin: origin, IPv6: addr.Is6()}
	backends := usable(eps, addr.Is6())
	if len(backends) == 0 {
		for class := range frontend.Paths {
			frontend.Paths[class] = Path{Verdict: Reject}
		}
	} else {
		r.pools[id] = Pool{Protocol: port.Protocol, Backends: backends}
		for class := range frontend.Paths {
			frontend.Paths[class] = Path{
				Verdict:    Forward,
				Pool:       id,
				Masquerade: Class(class) == FromOutside && outsideKnown,
			}
		}
	}
	r.add(Key{Addr: addr, Port: port.Port, Protocol: port.Protocol}, frontend)
}

func (r *rows) add(key Key, f Frontend) {
	if first, taken := r.frontends[key]; taken {
		r.clashes = append(r.clashes, Conflict{Key: key, Winner: first.Origin, Loser: f.Origin})
		return
	}
	r.frontends[key] = f
}

// endpoint is one address and port that serves a Service port.
type endpoint struct {
	addr                 netip.AddrPort
	ready, lastingServer bool // lastingServer: serving while terminating
}

// endpointsOf collects what the slices offer for a Service port, sorted by
// address and without duplicates. While an endpoint moves from one slice to
// another both list it; it is then as good as the better of the two.
func endpointsOf(port ServicePort, from []*Slice) []endpoint {
	found := map[netip.AddrPort]endpoint{}
	for _, slice := range from {
		i := slices.IndexFunc(slice.Ports, func(p SlicePort) bool {
			return p.Name == port.Name && p.Protocol == port.Protocol
		})
		if i < 0 {
			continue
		}
		for _, e := range slice.Endpoints {
			addr := netip.AddrPortFrom(e.Addr, slice.Ports[i].Port)
			known := found[addr]
			found[addr] = endpoint{
				addr:          addr,
				ready:         known.ready || e.Ready,
				lastingServer: known.lastingServer || (e.Serving && e.Terminating),
			}
		}
	}
	return slices.SortedFunc(maps.Values(found), func(a, b endpoint) int {
		return a.addr.Compare(b.addr)
	})
}

// usable picks the endpoints of one family that get new flows: the ready ones;
// if there is none, those that still serve while they terminate (KEP-1669).
func usable(eps []endpoint, ipv6 bool) []netip.AddrPort {
	var ready, lasting []netip.AddrPort
	for _, e := range eps {
		switch {
		case e.addr.Addr().Is6() != ipv6:
		case e.ready:
			ready = append(ready, e.addr)
		case e.lastingServer:
			lasting = append(lasting, e.addr)
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return lasting
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
