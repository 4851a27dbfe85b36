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
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Cluster collects the ranges to which packets go unmasked; the same one may be in
// it more than once. It remembers what came and went, so that what a change costs
// does not grow with the cluster. The zero value has none.
type Cluster struct {
	count   map[netip.Prefix]int // range → how many times it was added
	changes int                  // how many ranges have come or gone so far
	log     []netip.Prefix       // the last of them
}

// NewCluster makes a Cluster of ranges.
func NewCluster(ranges ...netip.Prefix) *Cluster {
	c := &Cluster{}
	c.Add(ranges...)
	return c
}

// Add adds ranges.
func (c *Cluster) Add(ranges ...netip.Prefix) {
	if c.count == nil {
		c.count = map[netip.Prefix]int{}
	}
	for _, r := range ranges {
		r = r.Masked()
		if c.count[r]++; c.count[r] == 1 {
			c.note(r)
		}
	}
}

// Remove removes each of the ranges once.
func (c *Cluster) Remove(ranges ...netip.Prefix) {
	for _, r := range ranges {
		r = r.Masked()
		if c.count[r] > 1 {
			c.count[r]--
			continue
		}
		if _, is := c.count[r]; is {
			delete(c.count, r)
			c.note(r)
		}
	}
}

// logged is for how many changes the log has room at least. Of more it is better to
// compare everything.
const logged = 1024

func (c *Cluster) note(r netip.Prefix) {
	if len(c.log) == 2*logged {
		c.log = append(c.log[:0], c.log[logged:]...)
	}
	c.log = append(c.log, r)
	c.changes++
}

// since is what may have come or gone since the changes were as many as given, ok
// if that is still known.
func (c *Cluster) since(changes int) (changed []netip.Prefix, ok bool) {
	missed := c.changes - changes
	if missed > len(c.log) {
		return nil, false
	}
	return c.log[len(c.log)-missed:], true
}

// has says whether packets to a range, as a whole, go unmasked.
func (c *Cluster) has(r netip.Prefix) bool {
	return c.count[r] > 0 || slices.Contains(never[:], r)
}

// of are the ranges of one family.
func (c *Cluster) of(is6 bool) []netip.Prefix {
	var all []netip.Prefix
	for r := range c.count {
		if r.Addr().Is6() == is6 {
			all = append(all, r)
		}
	}
	for _, r := range never {
		if r.Addr().Is6() == is6 && c.count[r] == 0 {
			all = append(all, r)
		}
	}
	return all
}

// never are destinations of which a router passes nothing on. With
// bridge-nf-call-iptables even what goes from one port of a bridge to another
// comes along here: to everybody, or to a group.
var never = [...]netip.Prefix{
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// ofFamily is a part of a list.
func ofFamily(ranges []netip.Prefix, is6 bool) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(ranges), func(r netip.Prefix) bool { return r.Addr().Is6() != is6 })
}

// shortest is the shortest list of prefixes that covers the same addresses, sorted.
func shortest(prefixes []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare) {
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

// synced is what a Table has had programmed; the zero value: nothing is known.
type synced struct {
	pods    []netip.Prefix
	to      *Cluster
	changes int // of to
}

func newSynced(pods []netip.Prefix, to *Cluster) synced {
	return synced{slices.Clone(pods), to, to.changes}
}

func (s synced) is(pods []netip.Prefix, to *Cluster) bool {
	return s.to == to && s.changes == to.changes && slices.Equal(s.pods, pods)
}

// Table is where the rules are.
type Table interface {
	// Sync has packets from the pods' ranges masqueraded that go to none of the
	// cluster's. It writes only what differs from the last time, or the first time,
	// and after an error, from what there is. Without pods nothing is left.
	Sync(pods []netip.Prefix, to *Cluster) error
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

// RemoveOthers removes the rules that other kinds of Table than the given one have
// written: a node's processes before this one may have had another, or now there is to
// be none, which is nil.
func RemoveOthers(kept Table) error {
	var errs []error
	if _, ok := kept.(*NFTables); !ok {
		errs = append(errs, CleanupNFTables())
	}
	if _, ok := kept.(*IPTables); !ok {
		errs = append(errs, CleanupIPTables())
	}
	return errors.Join(errs...)
}
