// Package masquerade gives packets of this node's pods that leave the cluster the
// node's own address: only there do the answers find their way. Packets between
// pods and nodes of the cluster are left as they are.
//
// There is one set of rules for the node and nothing for each pod: what comes
// from the pods' ranges and goes to outside of the cluster's. It is written to a
// table of nftables or, where the kernel has none, to a chain of iptables. Names
// of its own tell it from what others wrote; nothing else is touched. It stays
// when the process ends.
package masquerade

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sort"
)

// Ranges say whose packets are masqueraded and where to. Both lists are sorted,
// have no overlaps, and are as short as they can be.
type Ranges struct {
	Pods    []netip.Prefix // from here
	Cluster []netip.Prefix // to everywhere but here
}

// NewRanges makes Ranges of what may be in any order and overlap.
func NewRanges(pods, cluster []netip.Prefix) Ranges {
	var c Cluster
	c.Add(cluster...)
	return c.Ranges(pods)
}

// Cluster collects the ranges of a cluster that changes; the same one may be in it
// more than once. The zero value has none.
type Cluster struct{ sorted []netip.Prefix }

// Add adds ranges.
func (c *Cluster) Add(ranges ...netip.Prefix) {
	const few = 64
	if len(ranges) > few {
		c.sorted = append(c.sorted, ranges...)
		slices.SortFunc(c.sorted, netip.Prefix.Compare)
		return
	}
	for _, r := range ranges {
		i, _ := slices.BinarySearchFunc(c.sorted, r, netip.Prefix.Compare)
		c.sorted = slices.Insert(c.sorted, i, r)
	}
}

// Remove removes each of the ranges once.
func (c *Cluster) Remove(ranges ...netip.Prefix) {
	for _, r := range ranges {
		if i, found := slices.BinarySearchFunc(c.sorted, r, netip.Prefix.Compare); found {
			c.sorted = slices.Delete(c.sorted, i, i+1)
		}
	}
}

// Ranges are those that tell what of the pods' packets leaves the cluster.
func (c *Cluster) Ranges(pods []netip.Prefix) Ranges {
	var all Cluster
	all.sorted = slices.Clone(c.sorted)
	all.Add(never...)
	return Ranges{Pods: shortest(pods), Cluster: shortestSorted(all.sorted)}
}

// never are destinations of which a router passes nothing on. With
// bridge-nf-call-iptables even what goes from one port of a bridge to another
// comes along here: to everybody, or to a group.
var never = []netip.Prefix{
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// Equal says whether both mean the same.
func (r Ranges) Equal(other Ranges) bool {
	return slices.Equal(r.Pods, other.Pods) && slices.Equal(r.Cluster, other.Cluster)
}

// of is the part of one family, nothing at all if the node has no pods of it.
func (r Ranges) of(is6 bool) Ranges {
	part := Ranges{Pods: ofFamily(r.Pods, is6), Cluster: ofFamily(r.Cluster, is6)}
	if len(part.Pods) == 0 {
		return Ranges{}
	}
	return part
}

// ofFamily is a part of a sorted list, in which IPv4 comes first.
func ofFamily(sorted []netip.Prefix, is6 bool) []netip.Prefix {
	first6 := sort.Search(len(sorted), func(i int) bool { return sorted[i].Addr().Is6() })
	if is6 {
		return sorted[first6:]
	}
	return sorted[:first6]
}

// shortest is the shortest list of prefixes that covers the same addresses.
func shortest(prefixes []netip.Prefix) []netip.Prefix {
	return shortestSorted(slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare))
}

func shortestSorted(sorted []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(sorted))
	for _, p := range sorted {
		if len(out) > 0 && out[len(out)-1].Overlaps(p) {
			continue // sorted: it lies inside
		}
		out = append(out, p)
		for len(out) > 1 {
			whole, ok := joined(out[len(out)-2], out[len(out)-1])
			if !ok {
				break
			}
			out = append(out[:len(out)-2], whole)
		}
	}
	return out
}

// joined is the prefix of which two prefixes are the halves.
func joined(low, high netip.Prefix) (netip.Prefix, bool) {
	if low.Bits() != high.Bits() || low.Bits() == 0 {
		return netip.Prefix{}, false
	}
	whole := netip.PrefixFrom(low.Addr(), low.Bits()-1).Masked()
	return whole, whole.Addr() == low.Addr() && whole.Contains(high.Addr())
}

// Table is where the rules are.
type Table interface {
	// Sync makes the kernel agree with the ranges, writing only what differs from
	// the last time, or the first time, and after an error, from what there is.
	// Ranges without pods leave nothing.
	Sync(Ranges) error
	// Lost tells, until ctx ends, that somebody may have changed or removed the
	// rules; the next Sync looks. A nil channel never tells. It is called once.
	Lost(ctx context.Context) (<-chan struct{}, error)
	fmt.Stringer
}

// Open finds out what the kernel has: nftables, or else iptables.
func Open() (Table, error) {
	table, err := OpenNFTables()
	if err == nil {
		return table, nil
	}
	fallback, iptErr := OpenIPTables()
	if iptErr != nil {
		return nil, fmt.Errorf("%w; %w", err, iptErr)
	}
	return fallback, nil
}
