package node

import (
	"net/netip"
	"slices"
)

// Underlay is what the network between the nodes looks like from this one.
type Underlay struct {
	Addrs map[netip.Addr]Device // the node's own addresses that can be used → where they are
	// Routes of the main table that are not ours: destination → device if what
	// it leads to is on the link, the zero Device if there is a gateway.
	Routes map[netip.Prefix]Device

	lengths []int // of the destinations' prefixes, the longest first; nil: not yet known
}

// Device is a network device that is up.
type Device struct {
	Name string
	MTU  int
}

// onLink returns the device by which an address is reached with no gateway in
// between, if it is: as for the kernel, the longest prefix counts. A default route
// without a gateway is no word on who is on the link.
func (u *Underlay) onLink(a netip.Addr) (Device, bool) {
	if u.lengths == nil {
		u.lengths = u.prefixLengths()
	}
	for _, bits := range u.lengths {
		p, err := a.Prefix(bits)
		if err != nil {
			continue // longer than an IPv4 address
		}
		if d, ok := u.Routes[p]; ok {
			return d, d.Name != "" && bits > 0
		}
	}
	return Device{}, false
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
	for p, d := range u.Routes {
		if d.Name != "" && p.Bits() > 0 && !within(p, self.podCIDR(familyOf(p.Addr()))) {
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
