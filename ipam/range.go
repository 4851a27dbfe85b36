package ipam

import (
	"net/netip"
	"strings"
)

// Range is a run of addresses inside a subnet.
type Range struct {
	Subnet  netip.Prefix `json:"subnet"` // masked; its length is the length that addresses get
	First   netip.Addr   `json:"first"`
	Last    netip.Addr   `json:"last"`             // inclusive; both inside Subnet
	Gateway netip.Addr   `json:"gateway,omitzero"` // never given, whether First…Last has it or not; zero: there is none
	Pool    string       `json:"pool,omitempty"`   // the pool of the cluster that it is a block of; "" for a range of the node's own
}

// Set is ranges of one family that stand for each other: an owner gets one
// address of a set.
type Set []Range

// Contains says that the address is from First to Last. Addresses of different
// families compare by family first, so none of the other family is.
func (r Range) Contains(addr netip.Addr) bool {
	return r.First.Compare(addr) <= 0 && addr.Compare(r.Last) <= 0
}

// Overlaps says that the two ranges have an address in common.
func (r Range) Overlaps(o Range) bool {
	return r.First.Compare(o.Last) <= 0 && o.First.Compare(r.Last) <= 0
}

// String is the subnet where the range has all of its hosts, else First-Last.
func (r Range) String() string {
	if r.First.Compare(r.Subnet.Addr().Next()) <= 0 && r.Last.Compare(LastHost(r.Subnet)) >= 0 {
		return r.Subnet.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

func (s Set) String() string {
	texts := make([]string, len(s))
	for i, r := range s {
		texts[i] = r.String()
	}
	return strings.Join(texts, ", ")
}

// index is the place of the range that contains addr, or -1.
func (s Set) index(addr netip.Addr) int {
	for i, r := range s {
		if r.Contains(addr) {
			return i
		}
	}
	return -1
}

// address dresses an address of the set for an interface.
func (s Set) address(addr netip.Addr) Address {
	r := s[s.index(addr)]
	return Address{Prefix: netip.PrefixFrom(addr, r.Subnet.Bits()), Gateway: r.Gateway}
}

// LastHost is the highest address of a subnet that a host can have: in IPv4 the
// one before the broadcast address, in IPv6, which has no broadcast, the last.
func LastHost(subnet netip.Prefix) netip.Addr {
	if subnet.Addr().Is4() {
		return LastAddr(subnet).Prev()
	}
	return LastAddr(subnet)
}

// LastAddr is the subnet's address with all host bits set.
func LastAddr(subnet netip.Prefix) netip.Addr {
	bytes := subnet.Addr().AsSlice()
	for bit := subnet.Bits(); bit < 8*len(bytes); bit++ {
		bytes[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}

// reserved is the addresses that are never given → what each is. It spans all
// sets: whichever range names a gateway, no pod may answer for it.
func reserved(sets []Set) map[netip.Addr]string {
	what := map[netip.Addr]string{}
	for _, set := range sets {
		for _, r := range set {
			if r.Subnet.Addr().Is4() {
				what[r.Subnet.Addr()] = "the network address of " + r.Subnet.String()
				what[LastAddr(r.Subnet)] = "the broadcast address of " + r.Subnet.String()
			} else { // RFC 4291, 2.6.1
				what[r.Subnet.Addr()] = "the subnet-router anycast address of " + r.Subnet.String()
			}
			if r.Gateway.IsValid() {
				what[r.Gateway] = "the gateway of " + r.Subnet.String()
			}
		}
	}
	return what
}
