package hostlocal

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/ipam"
)

// rangeConf is one range as JSON has it.
type rangeConf struct {
	Subnet     any `json:"subnet"`
	RangeStart any `json:"rangeStart"`
	RangeEnd   any `json:"rangeEnd"`
	Gateway    any `json:"gateway"`
}

// setAt is a set of ranges, each with the path at which it stands.
type setAt struct {
	path   string
	ranges []rangeAt
}

type rangeAt struct {
	path string
	rangeConf
}

// setsAt lists the sets in host-local's order: the runtime's, the range of the
// first form, then ranges. The first form's other keys mean nothing without its
// subnet.
func (c addConf) setsAt() []setAt {
	sets := listAt("runtimeConfig.ipRanges", c.RuntimeConfig.IPRanges)
	if c.IPAM.Subnet != nil {
		sets = append(sets, setAt{"ipam", []rangeAt{{"ipam", c.IPAM.rangeConf}}})
	}
	return append(sets, listAt("ipam.ranges", c.IPAM.Ranges)...)
}

func listAt(path string, sets [][]rangeConf) []setAt {
	var list []setAt
	for i, set := range sets {
		at := setAt{path: fmt.Sprintf("%s[%d]", path, i)}
		for j, r := range set {
			at.ranges = append(at.ranges, rangeAt{fmt.Sprintf("%s[%d]", at.path, j), r})
		}
		list = append(list, at)
	}
	return list
}

// sets decodes the sets and sees that no two ranges overlap: an address must
// have one gateway and one set that gives it.
func (c addConf) sets() ([]ipam.Set, error) {
	var sets []ipam.Set
	var ranges []ipam.Range
	var paths []string // of the ranges
	for _, at := range c.setsAt() {
		set, err := at.decode()
		if err != nil {
			return nil, err
		}
		for i, r := range set {
			path := at.ranges[i].path
			if j := slices.IndexFunc(ranges, r.Overlaps); j >= 0 {
				return nil, invalid(path, "%s overlaps %s of %s", r, ranges[j], paths[j])
			}
			ranges, paths = append(ranges, r), append(paths, path)
		}
		sets = append(sets, set)
	}
	if len(sets) == 0 && len(c.IPAM.Pools) == 0 {
		return nil, invalid("ipam.ranges", "no value is not allowed: there must be at least one range, here or as ipam.subnet, or a pool in ipam.pools")
	}
	return sets, nil
}

// decode decodes the ranges of a set, which are of one family.
func (s setAt) decode() (ipam.Set, error) {
	var set ipam.Set
	for _, at := range s.ranges {
		r, err := at.decode()
		if err != nil {
			return nil, err
		}
		if len(set) > 0 && set[0].Subnet.Addr().BitLen() != r.Subnet.Addr().BitLen() {
			return nil, invalid(at.path+".subnet", "%s is not of the family of %s, which the set begins with", r.Subnet, set[0].Subnet)
		}
		set = append(set, r)
	}
	if len(set) == 0 {
		return nil, invalid(s.path, "an empty list is not allowed: it must be ranges to choose from")
	}
	return set, nil
}

// decode validates a range and fills in host-local's defaults: all hosts of the
// subnet, the first of which is the gateway.
func (r rangeAt) decode() (ipam.Range, error) {
	subnet, err := parseSubnet(r.path+".subnet", r.Subnet)
	if err != nil {
		return ipam.Range{}, err
	}
	first := subnet.Addr().Next()
	decoded := ipam.Range{Subnet: subnet, First: first, Last: ipam.LastHost(subnet), Gateway: first}
	for _, field := range []struct {
		name  string
		value any
		into  *netip.Addr
	}{
		{"rangeStart", r.RangeStart, &decoded.First},
		{"rangeEnd", r.RangeEnd, &decoded.Last},
		{"gateway", r.Gateway, &decoded.Gateway},
	} {
		if field.value == nil || field.value == "" {
			continue
		}
		if *field.into, err = parseHost(r.path+"."+field.name, field.value, subnet); err != nil {
			return ipam.Range{}, err
		}
	}
	if decoded.Last.Less(decoded.First) {
		return ipam.Range{}, invalid(r.path+".rangeEnd", "%s is before rangeStart %s", decoded.Last, decoded.First)
	}
	return decoded, nil
}

func parseSubnet(path string, value any) (netip.Prefix, error) {
	text, _ := value.(string)
	subnet, err := netip.ParsePrefix(text)
	switch {
	case err != nil || subnet.Addr().Is4In6():
		return subnet, invalid(path, "%s is not allowed: it must be a subnet, such as 10.1.2.0/24 or fd00:1::/64", shown(value))
	case subnet != subnet.Masked():
		return subnet, invalid(path, "%s has host bits set: the subnet is %s", subnet, subnet.Masked())
	case subnet.Bits() > subnet.Addr().BitLen()-2:
		return subnet, invalid(path, "%s is too small: it must have room for hosts, which /%d has", subnet, subnet.Addr().BitLen()-2)
	}
	return subnet, nil
}

// parseHost takes an address of the subnet.
func parseHost(path string, value any, subnet netip.Prefix) (netip.Addr, error) {
	addr, err := parseAddr(path, value, "an address of "+subnet.String())
	if err == nil && !subnet.Contains(addr) {
		return addr, invalid(path, "%s is not in subnet %s", addr, subnet)
	}
	return addr, err
}
