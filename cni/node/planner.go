package node

import (
	"net/netip"
	"slices"
)

// Planner plans for one node of a cluster that changes. A change of nodes that
// have nothing to do with each other but their network costs what it changes,
// however large the cluster is; all else is planned whole, by Make.
type Planner struct {
	self    string
	options Options

	members map[string]Member // by name, this node too
	// What follows is of the last whole plan, and of the changes since.
	plan   Plan // its lists are those of the last whole plan
	fields [len(families)]field
	simple bool // no two nodes contradict each other
	wanted int  // routes
}

// field is what a family's part of the plan depends on.
type field struct {
	way
	claims []netip.Prefix // sorted: the ranges of other nodes
	addrs  []netip.Addr   // sorted: their addresses
	behind int            // how many are behind a tunnel
	mtus   map[int]int    // MTU of a path → how many have it
}

// Summary is what there is to say of a plan besides what to write.
type Summary struct {
	MTU      int  // as in Plan
	Ready    bool // as in Plan
	Problems []Problem
	Tunnels  int
	Routes   int
}

// Change is what to write when a few nodes have changed: what Old has and New has
// not goes, what New has comes.
type Change struct{ Old, New Plan }

// NewPlanner returns a planner for the node of that name.
func NewPlanner(self string, o Options) *Planner {
	return &Planner{self: self, options: o, members: map[string]Member{}}
}

// Services says in which ranges Services are, from now on. The next plan has to be a
// whole one.
func (p *Planner) Services(ranges []netip.Prefix) {
	p.options.Services = ranges
	p.simple = false
}

// Self returns this node, as far as the cluster knows it.
func (p *Planner) Self() (Member, bool) {
	m, ok := p.members[p.self]
	return m, ok
}

// Set notes what a node is now, Remove that it is no more. Both return whether the
// plan can follow with a Change; else it has to be made whole. The underlay must be
// that of the plan.
func (p *Planner) Set(m Member, u *Underlay) (Change, bool) {
	old, had := p.members[m.Name]
	p.members[m.Name] = m
	var c Change
	ok := p.simple && m.Name != p.self && (!had || p.leave(old, u, &c.Old)) && p.join(m, u, &c.New)
	p.simple = ok
	return c, ok
}

// Remove is for a node that is gone.
func (p *Planner) Remove(name string, u *Underlay) (Change, bool) {
	old, had := p.members[name]
	delete(p.members, name)
	var c Change
	ok := p.simple && name != p.self && (!had || p.leave(old, u, &c.Old))
	p.simple = ok
	return c, ok
}

// Whole plans everything.
func (p *Planner) Whole(u *Underlay) Plan {
	others := make([]Member, 0, len(p.members))
	for name, m := range p.members {
		if name != p.self {
			others = append(others, m)
		}
	}
	p.plan = Make(p.members[p.self], others, u, p.options)
	p.wanted = len(p.plan.Routes)
	p.simple = !slices.ContainsFunc(p.plan.Problems, func(problem Problem) bool { return contradicts[problem.Kind] })
	for i, f := range families {
		p.fields[i] = p.survey(f, others, u)
	}
	return p.plan
}

// contradicts has the kinds of problems that a node can cause to another one.
var contradicts = map[Kind]bool{OverlapsNode: true, OverlapsLink: true, OverlapsServices: true, AddressTaken: true}

// Summary sums up the last plan, as it is after all changes.
func (p *Planner) Summary() Summary {
	return Summary{p.plan.MTU, p.plan.Ready, p.plan.Problems, len(p.plan.Tunnels), p.wanted}
}

// survey reads what a family's part of the plan depends on.
func (p *Planner) survey(f family, others []Member, u *Underlay) field {
	local := p.members[p.self].addr(f)
	device := u.Addrs[local]
	s := field{way: way{family: f, local: local, mtu: device.MTU}, mtus: map[int]int{}}
	for _, m := range others {
		addr, cidr := m.addr(f), m.podCIDR(f)
		if addr.IsValid() {
			s.addrs = append(s.addrs, addr)
		}
		if !cidr.IsValid() {
			continue
		}
		s.claims = append(s.claims, cidr)
		if path := u.path(addr); addr.IsValid() {
			s.count(path, p.options.Routing, 1)
		}
	}
	slices.SortFunc(s.claims, netip.Prefix.Compare)
	slices.SortFunc(s.addrs, netip.Addr.Compare)
	return s
}

func (s *field) count(path Path, routing Routing, by int) {
	if s.mtus[path.MTU] += by; s.mtus[path.MTU] == 0 {
		delete(s.mtus, path.MTU)
	}
	if path.tunnelled(routing) {
		s.behind += by
	}
}

// tunnelled says whether what takes the path goes through a tunnel.
func (path Path) tunnelled(routing Routing) bool { return !path.OnLink || routing == VXLAN }

// leave takes a node's part out of the plan, into into. It reports false if other
// parts depend on it.
func (p *Planner) leave(m Member, u *Underlay, into *Plan) bool {
	for i := range p.fields {
		s := &p.fields[i]
		addr, cidr := m.addr(s.family), m.podCIDR(s.family)
		s.addrs = without(s.addrs, addr, netip.Addr.Compare)
		if !cidr.IsValid() {
			if p.members[p.self].podCIDR(s.family).IsValid() {
				return false // that was a problem
			}
			continue
		}
		s.claims = without(s.claims, cidr, netip.Prefix.Compare)
		path := u.path(addr)
		if !p.stands(s, addr, cidr, path, u) {
			return false
		}
		s.count(path, p.options.Routing, -1)
		limited := path.MTU > 0 && path.MTU < s.mtu
		if path.tunnelled(p.options.Routing) && s.behind == 0 || limited && s.mtus[path.MTU] == 0 {
			return false // no tunnel any more, or another MTU
		}
		p.wanted -= p.part(s, m, u, into)
	}
	return true
}

// join adds a node's part to the plan, and to into. It reports false if other
// parts depend on it.
func (p *Planner) join(m Member, u *Underlay, into *Plan) bool {
	for i := range p.fields {
		s := &p.fields[i]
		addr, cidr := m.addr(s.family), m.podCIDR(s.family)
		if addr.IsValid() && s.isInside(addr) {
			return false
		}
		if cidr.IsValid() {
			path := u.path(addr)
			tunnelled := path.tunnelled(p.options.Routing)
			if !p.stands(s, addr, cidr, path, u) || tunnelled && s.behind == 0 || path.MTU > 0 && path.MTU < s.least() {
				return false
			}
			s.count(path, p.options.Routing, 1)
			s.claims = with(s.claims, cidr, netip.Prefix.Compare)
			p.wanted += p.part(s, m, u, into)
		} else if p.members[p.self].podCIDR(s.family).IsValid() {
			return false // that is a problem
		}
		if addr.IsValid() {
			s.addrs = with(s.addrs, addr, netip.Addr.Compare)
		}
	}
	return true
}

// stands says whether an address and a range, which are not in the field, have
// nothing to do with what is there.
func (p *Planner) stands(s *field, addr netip.Addr, cidr netip.Prefix, path Path, u *Underlay) bool {
	own := p.members[p.self].podCIDR(s.family)
	_, usable := u.Addrs[s.local]
	_, taken := u.Addrs[addr]
	if !own.IsValid() || !addr.IsValid() || !usable || taken || s.isInside(addr) || cidr.Contains(addr) || path.tunnelled(p.options.Routing) && p.options.Routing == Direct {
		return false
	}
	if own.Overlaps(cidr) || overlapping(p.options.Services, cidr) >= 0 || overlapping(u.links(p.members[p.self]), cidr) >= 0 {
		return false
	}
	if _, found := slices.BinarySearchFunc(s.addrs, addr, netip.Addr.Compare); found {
		return false
	}
	i, found := slices.BinarySearchFunc(s.claims, cidr, netip.Prefix.Compare)
	if found || i > 0 && s.claims[i-1].Overlaps(cidr) || i < len(s.claims) && s.claims[i].Overlaps(cidr) {
		return false
	}
	first, _ := slices.BinarySearchFunc(s.addrs, cidr.Addr(), netip.Addr.Compare)
	return first == len(s.addrs) || !cidr.Contains(s.addrs[first])
}

// isInside says whether an address is in another node's range.
func (s *field) isInside(addr netip.Addr) bool {
	i, found := slices.BinarySearchFunc(s.claims, addr, func(c netip.Prefix, a netip.Addr) int { return c.Addr().Compare(a) })
	return found || i > 0 && s.claims[i-1].Contains(addr)
}

// least is the smallest MTU of the paths and of the device.
func (s *field) least() int {
	least := s.mtu
	for mtu := range s.mtus {
		if mtu > 0 {
			least = min(least, mtu)
		}
	}
	return least
}

// part plans the way to one node's pods and returns the number of its routes.
func (p *Planner) part(s *field, m Member, u *Underlay, into *Plan) int {
	one := maker{self: p.members[p.self], others: []Member{m}, underlay: u, options: p.options, at: map[netip.Addr]string{}}
	w := s.way
	one.reach(&w, claim{m.podCIDR(s.family), 0, &m})
	one.plan.limit(p.plan.MTU)
	into.Routes = append(into.Routes, one.plan.Routes...)
	into.Neighbours = append(into.Neighbours, one.plan.Neighbours...)
	return len(one.plan.Routes)
}

func with[T any](list []T, value T, compare func(a, b T) int) []T {
	i, _ := slices.BinarySearchFunc(list, value, compare)
	return slices.Insert(list, i, value)
}

func without[T any](list []T, value T, compare func(a, b T) int) []T {
	i, found := slices.BinarySearchFunc(list, value, compare)
	if !found {
		return list
	}
	return slices.Delete(list, i, i+1)
}
