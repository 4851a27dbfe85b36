package node

import (
	"cmp"
	"net/netip"
	"slices"
)

// claim is a node's claim to a range for its pods.
type claim struct {
	cidr   netip.Prefix
	member int // its index among the others, or own
	*Member
}

// own is the claim of this node.
const own = -1

// before says whose claim is believed of two that contradict each other: that of
// the older node, so that all nodes agree, also after a restart. Where that is not
// known, names decide.
func (c claim) before(other claim) bool {
	return cmp.Or(c.Created.Compare(other.Created), cmp.Compare(c.Name, other.Name)) < 0
}

// claims are those of a family, sorted by range, this node's among them. A node
// without one is a problem if this node has pods of the family.
func (m *maker) claims(f family) []claim {
	claims := make([]claim, 0, len(m.others)+1)
	for i := range m.others {
		other := &m.others[i]
		cidr := other.podCIDR(f)
		switch {
		case cidr.IsValid():
			claims = append(claims, claim{cidr, i, other})
		case len(other.PodCIDRs) == 0 && f.name == families[0].name:
			m.problem(NoPodCIDR, other.Name, "it has no pod CIDR: no pods can run on it")
		case len(other.PodCIDRs) > 0 && m.self.podCIDR(f).IsValid():
			m.problem(NoPodCIDROfBoth, other.Name, "it has no %s pod CIDR, this node has: its pods are reached by the other family only", f.name)
		}
	}
	if cidr := m.self.podCIDR(f); cidr.IsValid() {
		claims = append(claims, claim{cidr, own, &m.self})
	}
	slices.SortFunc(claims, func(a, b claim) int { return cmp.Or(a.cidr.Compare(b.cidr), cmp.Compare(a.Name, b.Name)) })
	return claims
}

// settle leaves out the claims that contradict the underlay, the Services or each
// other, and this node's.
func (m *maker) settle(f family, claims []claim) []claim {
	links := m.underlay.links(m.self)
	kept := claims[:0]
	for _, c := range claims {
		if i := overlapping(links, c.cidr); i >= 0 {
			m.onLink(f, c, links[i])
			continue
		}
		if i := overlapping(m.options.Services, c.cidr); i >= 0 {
			m.unfit = m.unfit || c.member == own
			m.problem(OverlapsServices, c.Name, "its pod CIDR %s overlaps %s, in which Services are: %s", c.cidr, m.options.Services[i], consequence(c))
			continue
		}
		kept = m.keep(kept, c)
	}
	return m.withoutNodes(f, m.withoutOwn(f, kept))
}

func consequence(c claim) string {
	if c.member == own {
		return "no pods can run on it"
	}
	return "it is not reached"
}

// onLink tells that a claim is to what is on a link of this node. A node that is
// on that link itself tells it of itself.
func (m *maker) onLink(f family, c claim, link netip.Prefix) {
	switch {
	case c.member == own:
		m.unfit = true
		m.problem(OverlapsLink, c.Name, "its pod CIDR %s overlaps %s, which is on a link of this node", c.cidr, link)
	case link.Contains(c.addr(f)):
		m.problem(OverlapsLink, c.Name, "its pod CIDR %s overlaps %s, which is on a link of this node: it is not reached", c.cidr, link)
	default:
		m.problem(OverlapsLink, m.self.Name, "on a link of it is %s, which the pod CIDR %s of node %s overlaps: that is not reached", link, c.cidr, c.Name)
	}
}

// withoutOwn leaves out this node's claim, and what overlaps its pods: they are
// there, whoever is believed.
func (m *maker) withoutOwn(f family, claims []claim) []claim {
	cidr := m.self.podCIDR(f)
	return slices.DeleteFunc(claims, func(c claim) bool {
		if c.member != own && cidr.IsValid() && cidr.Overlaps(c.cidr) {
			m.problem(OverlapsNode, c.Name, "its pod CIDR %s overlaps %s of this node: it is not reached", c.cidr, cidr)
			return true
		}
		return c.member == own
	})
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
		if i < 0 || !claims[i].cidr.Contains(addr) {
			continue
		}
		if name, ok := inside[i]; !ok || member.Name < name { // of several always the same
			inside[i] = member.Name
		}
	}
	if len(inside) == 0 {
		return claims
	}
	var kept []claim
	for i, c := range claims {
		if name, ok := inside[i]; ok {
			m.problem(OverlapsNode, c.Name, "the address of node %s is in its pod CIDR %s: it is not reached", name, c.cidr)
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

// keep adds a claim to those kept. Sorted ranges overlap only the last one kept,
// in which they then lie.
func (m *maker) keep(kept []claim, c claim) []claim {
	if len(kept) == 0 || !kept[len(kept)-1].cidr.Overlaps(c.cidr) {
		return append(kept, c)
	}
	last := &kept[len(kept)-1]
	winner, loser := *last, c
	if c.before(*last) {
		winner, loser = c, *last
	}
	*last = winner
	m.unfit = m.unfit || loser.member == own
	whose := "node " + winner.Name
	if winner.member == own {
		whose = "this node"
	}
	m.problem(OverlapsNode, loser.Name, "its pod CIDR %s overlaps %s of %s: it is not reached", loser.cidr, winner.cidr, whose)
	return kept
}

// placeServices looks whether Services are where hosts on a link of this node are.
func (m *maker) placeServices() {
	links := m.underlay.links(m.self)
	for _, services := range m.options.Services {
		if i := overlapping(links, services); i >= 0 {
			m.problem(ServicesOnLink, m.self.Name, "on a link of it is %s, which overlaps %s, in which Services are: a host there that has the address of a Service is not reached", links[i], services)
		}
	}
}

// overlapping is the index of the first of ranges that overlaps p, or -1.
func overlapping(ranges []netip.Prefix, p netip.Prefix) int {
	return slices.IndexFunc(ranges, p.Overlaps)
}
