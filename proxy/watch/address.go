package watch

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// parseAddr reads an address as the API takes it. Leading zeros, which some read
// as octal, are refused by netip; IPv4-mapped addresses, which some take for IPv4
// and some for IPv6, and zones are refused here.
func parseAddr(path *field.Path, text string) (netip.Addr, *field.Error) {
	addr, err := netip.ParseAddr(text)
	switch {
	case err != nil || addr.Zone() != "":
		return netip.Addr{}, field.Invalid(path, text, "must be an IP address such as 10.9.8.7 or 2001:db8::ffff, with no zone and no leading zeros")
	case addr.Is4In6():
		return netip.Addr{}, field.Invalid(path, text, fmt.Sprintf("must not be an IPv4-mapped IPv6 address: write %s", addr.Unmap()))
	}
	return addr, nil
}

// parseUnicast reads an address that traffic can be sent to from anywhere in the
// cluster.
func parseUnicast(path *field.Path, text string) (netip.Addr, *field.Error) {
	addr, err := parseAddr(path, text)
	if err != nil {
		return netip.Addr{}, err
	}
	var special string
	switch {
	case addr.IsUnspecified():
		special = "unspecified"
	case addr.IsLoopback():
		special = "loopback"
	case addr.IsLinkLocalUnicast():
		special = "link-local"
	case addr.IsMulticast():
		special = "multicast"
	default:
		return addr, nil
	}
	return netip.Addr{}, field.Invalid(path, text, "must not be "+special)
}

func parseCIDR(path *field.Path, text string) (netip.Prefix, *field.Error) {
	cidr, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		return netip.Prefix{}, field.Invalid(path, text, "must be a CIDR such as 10.9.8.0/24 or 2001:db8::/64, with no zone and no leading zeros")
	case cidr.Addr().Is4In6():
		return netip.Prefix{}, field.Invalid(path, text, "must not have an IPv4-mapped IPv6 address")
	case cidr != cidr.Masked():
		return netip.Prefix{}, field.Invalid(path, text, fmt.Sprintf("must not have bits set beyond the prefix length: write %s", cidr.Masked()))
	}
	return cidr, nil
}

// parseCIDRs reads ranges, of each family one at most.
func parseCIDRs(values []textAt) (cidrs []netip.Prefix, errs field.ErrorList) {
	var families onePerFamily
	for _, v := range values {
		cidr, err := parseCIDR(v.path, v.text)
		if err == nil {
			err = families.add(v, cidr.Addr())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		cidrs = append(cidrs, cidr)
	}
	return cidrs, errs
}

func familyOf(addr netip.Addr) corev1.IPFamily {
	if addr.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// textAt is the text of a field.
type textAt struct {
	path *field.Path
	text string
}

// plural returns the entries of a list whose first entry also has an older field
// of its own (clusterIPs and clusterIP). The list counts; the older field must
// agree with it, or stand alone.
func plural(parent *field.Path, singular, one string, many []string) ([]textAt, field.ErrorList) {
	if len(many) == 0 {
		if one == "" {
			return nil, nil
		}
		return []textAt{{parent.Child(singular), one}}, nil
	}
	var errs field.ErrorList
	list := parent.Child(singular + "s")
	if one != "" && one != many[0] {
		errs = append(errs, field.Invalid(parent.Child(singular), one, fmt.Sprintf("must be the same as %s, which is %s", list.Index(0), many[0])))
	}
	return entries(list, many), errs
}

// entries are the texts of a list.
func entries(list *field.Path, texts []string) []textAt {
	values := make([]textAt, len(texts))
	for i, text := range texts {
		values[i] = textAt{list.Index(i), text}
	}
	return values
}

// onePerFamily refuses a second address of a family.
type onePerFamily struct {
	v4, v6 string // the first one
}

func (o *onePerFamily) add(v textAt, addr netip.Addr) *field.Error {
	first := &o.v6
	if addr.Is4() {
		first = &o.v4
	}
	if *first != "" {
		return field.Invalid(v.path, v.text, fmt.Sprintf("must not be a second one of %s, after %s", familyOf(addr), *first))
	}
	*first = v.text
	return nil
}
