package node

import (
	"net/netip"
	"slices"
)

// Underlay is what the network between the nodes looks like from this one.
type Underlay struct {
	Addrs  map[netip.Addr]Device // the node's own addresses that can be used → where they are
	Routes map[netip.Prefix]Path // of the main table that are not ours, by destination
	NoIPv6 bool                  // the kernel has it switched off

	lengths []int // of the destinations' prefixes, the longest first; nil: not yet known
}

// Device is a network device that is up.
type Device struct {
	Name string
	MTU  int
}

// Path is how packets leave.
type Path struct {
	Device      // the zero one if there are several
	OnLink bool // the destination is on the link, there is no gateway in between
}

// path returns how an address is reached, the zero Path if it is not: as for the
// kernel, the longest prefix counts. A default route without a gateway is no word
// on who is on the link.
func (u *Underlay) path(a netip.Addr) Path {
	if u.lengths == nil {
		u.lengths = u.prefixLengths()
	}
	for _, bits := range u.lengths {
		p, err := a.Prefix(bits)
		if err != nil {
			continue // longer than an IPv4 address
		}
		if path, ok := u.Routes[p]; ok {
			path.OnLink = path.OnLink && bits > 0
			return path
		}
	}
	return Path{}
}

func (u *Underlay) prefixLengths() []int {
	lengths := []int{}
	for p := range u.Routes {
		if !slices.Contains(lengths, p.Bits()) {
			lengths = append(lengths, p.Bits())
		}
	}
	slices.Sort(lengths)
	slices.Reverse(lengths)
	return lengths
}

// links are the ranges on the links of this node. A range of its own pods, which
// are on a bridge, is none.
func (u *Underlay) links(self Member) []netip.Prefix {
	var found []netip.Prefix
	for p, path := range u.Routes {
		if path.OnLink && p.Bits() > 0 && !within(p, self.podCIDR(familyOf(p.Addr()))) {
			found = append(found, p)
		}
	}
	slices.SortFunc(found, netip.Prefix.Compare)
	return found
}

// within says whether p is outer or a part of it.
func within(p, outer netip.Prefix) bool {
	return outer.IsValid() && outer.Bits() <= p.Bits() && outer.Contains(p.Addr())
}
