package node

import (
	"net/netip"
	"slices"
	"strings"
)

// Peer is how the pods of another node are reached from this one, in one family.
type Peer struct {
	Node    string       `json:"node"`
	Addr    netip.Addr   `json:"address,omitzero"` // where the node is
	PodCIDR netip.Prefix `json:"podCIDR,omitzero"`
	Kind    PeerKind     `json:"kind"`
	Via     netip.Addr   `json:"via,omitzero"`
	Device  string       `json:"device,omitempty"`
	Why     string       `json:"why,omitempty"` // they are not reached
}

// PeerKind is by what kind of route.
type PeerKind string

// The kinds.
const (
	PeerDirect  PeerKind = "direct"  // via the other node's address
	PeerVXLAN   PeerKind = "vxlan"   // through a tunnel
	PeerMissing PeerKind = "missing" // by none
)

// Peers says how all others are reached, sorted by name: what a whole new plan wants,
// and of that what the kernel has.
func (p *Planner) Peers(u *Underlay, has func(Route) bool) []Peer {
	var others []Member
	for name, m := range p.members {
		if name != p.self {
			others = append(others, m)
		}
	}
	slices.SortFunc(others, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	plan := Make(p.members[p.self], others, u, p.options)
	routes := map[netip.Prefix]Route{}
	for _, r := range plan.Routes {
		if r.Table == mainTable {
			routes[r.Dst] = r
		}
	}
	peers := make([]Peer, 0, len(others))
	for _, m := range others {
		if len(m.PodCIDRs) == 0 {
			peers = append(peers, Peer{Node: m.Name, Kind: PeerMissing, Why: plan.why(m.Name, netip.Prefix{})})
		}
		for _, f := range families {
			cidr := m.podCIDR(f)
			if !cidr.IsValid() {
				continue
			}
			peer := Peer{Node: m.Name, Addr: m.addr(f), PodCIDR: cidr, Kind: PeerMissing}
			switch r, planned := routes[cidr]; {
			case !planned || !peer.isBehind(r):
				peer.Why = plan.why(m.Name, cidr)
			case !has(r):
				peer.Why = "the kernel does not have the route"
			default:
				peer.reachedBy(r)
			}
			peers = append(peers, peer)
		}
	}
	return peers
}

// isBehind says whether a route leads to the peer, and not to another one that claims
// the same range.
func (p *Peer) isBehind(r Route) bool {
	return p.Addr.IsValid() && (r.Via == p.Addr || r.Via == behind(p.Addr, macOf(p.Addr)))
}

func (p *Peer) reachedBy(r Route) {
	p.Kind, p.Via, p.Device = PeerDirect, r.Via, r.Dev
	if isTunnel(r.Dev) {
		p.Kind = PeerVXLAN
	}
}

// why is what keeps a node's pods from being reached.
func (p Plan) why(member string, cidr netip.Prefix) string {
	for _, problem := range p.Problems {
		if problem.Member == member && (!cidr.IsValid() || strings.Contains(problem.Text, cidr.String())) {
			return problem.Text
		}
	}
	for _, problem := range p.Problems {
		if cidr.IsValid() && strings.Contains(problem.Text, cidr.String()) {
			return problem.String()
		}
	}
	for _, problem := range p.Problems {
		if problem.Kind == NoAddress || problem.Kind == IPv6Disabled {
			return problem.String()
		}
	}
	return "this node has no pod CIDR of that family"
}

// Has says whether the kernel has a route, as far as it is known.
func (k *Kernel) Has(r Route) bool {
	h, ok := k.have.routes[routeKey{r.Table, r.Dst}]
	return ok && h == hop{r.Dev, r.Via, r.Src, r.MTU}
}
