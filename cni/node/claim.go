package node

import (
	"net/netip"
	"slices"
)

// claim is a node's claim to a range for its pods.
type claim struct {
	cidr   netip.Prefix
	name   string // of the node
	member int    // its index among the others
}

// claims are those of a family, sorted by range. A node without one is a problem
// if this node has pods of the family.
func (m *maker) claims(f family) []claim {
	claims := make([]claim, 0, len(m.others))
	for i, other := range m.others {
		cidr := other.podCIDR(f)
		switch {
		case cidr.IsValid():
			claims = append(claims, claim{cidr, other.Name, i})
		case len(other.PodCIDRs) == 0 && f.name == families[0].name:
			m.problem(other.Name, "it has no pod CIDR: no pods can run on it")
		case len(other.PodCIDRs) > 0 && m.self.podCIDR(f).IsValid():
			m.problem(other.Name, "it has no %s pod CIDR, this node has: its pods are reached by the other family only", f.name)
		}
	}
	slices.SortFunc(claims, func(a, b claim) int { return a.cidr.Compare(b.cidr) })
	return claims
}

// settle leaves out the claims that contradict the node's own, the underlay or
// each other.
func (m *maker) settle(f family, claims []claim) []claim {
	links := m.underlay.links(m.self)
	own := m.self.podCIDR(f)
	if i := overlapping(links, own); i >= 0 {
		m.unfit = true
		m.problem(m.self.Name, "its pod CIDR %s overlaps %s, which is on a link of this node", own, links[i])
	}
	kept := claims[:0]
	for _, c := range claims {
		if own.IsValid() && own.Overlaps(c.cidr) {
			m.problem(c.name, "its pod CIDR %s overlaps %s of this node: it is not reached", c.cidr, own)
			continue
		}
		if i := overlapping(links, c.cidr); i >= 0 {
			m.problem(c.name, "its pod CIDR %s overlaps %s, which is on a link of this node: it is not reached", c.cidr, links[i])
			continue
		}
		kept = m.keep(kept, c)
	}
	return m.withoutNodes(f, kept)
}

// withoutNodes leaves out claims to a range in which a node is: what is sent to
// that node would be led into a tunnel, whose packets are led there as well.
func (m *maker) withoutNodes(f family, claims []claim) []claim {
	inside := map[int]string{} // index of a claim → the node in it
	for _, member := range m.others {
		addr := member.addr(f)
		i, found := slices.BinarySearchFunc(claims, addr, func(c claim, a netip.Addr) int { return c.cidr.Addr().Compare(a) })
		if !found {
			i--
		}
		if i >= 0 && claims[i].cidr.Contains(addr) {
			inside[i] = member.Name
		}
	}
	if len(inside) == 0 {
		return claims
	}
	var kept []claim
	for i, c := range claims {
		if name, ok := inside[i]; ok {
			m.problem(c.name, "the address of node %s is in its pod CIDR %s: it is not reached", name, c.cidr)
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

// keep adds a claim to those kept. Sorted ranges overlap only the last one kept,
// in which they then lie. Of two nodes that claim the same, the one whose name
// sorts first is believed, so that all nodes agree, also after a restart.
func (m *maker) keep(kept []claim, c claim) []claim {
	if len(kept) == 0 || !kept[len(kept)-1].cidr.Overlaps(c.cidr) {
		return append(kept, c)
	}
	last := &kept[len(kept)-1]
	winner, loser := *last, c
	if c.name < last.name {
		winner, loser = c, *last
	}
	*last = winner
	m.problem(loser.name, "its pod CIDR %s overlaps %s of node %s: it is not reached", loser.cidr, winner.cidr, winner.name)
	return kept
}

// overlapping is the index of the first of ranges that overlaps p, or -1.
func overlapping(ranges []netip.Prefix, p netip.Prefix) int {
	if !p.IsValid() {
		return -1
	}
	return slices.IndexFunc(ranges, p.Overlaps)
}
