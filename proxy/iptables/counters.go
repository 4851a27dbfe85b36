package iptables

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fairlead/fairlead/proxy/nfacct"
	"github.com/fairlead/fairlead/proxy/service"
)

// counters count connections in the kernel: nat sees the first packet of each, so a
// rule at the head of a pool's chain adds it to the counter of the Service port. A
// counter is an object of its own (see nfacct). It goes on when the chain is written
// anew, and when this process is.
//
// The kernel looks counters up one by one, so their number is limited: who comes first
// has one, and keeps it.
type counters struct {
	limit int
	known bool // what is there from before has been looked at
	// packets: the counters of packets are there, which have nothing to do with limit
	// but that 0 counts nothing.
	packets bool

	mu   sync.Mutex                // guards what of is changed to, for Connections
	of   map[service.Origin]string // Service port that is counted → name of its counter
	left map[string]bool           // counters that nobody needs and that are still there
}

func newCounters(limit int) *counters {
	return &counters{limit: limit, of: map[service.Origin]string{}, left: map[string]bool{}}
}

const counterPrefix = "fairlead-" // of Service ports

// Counters of packets.
const (
	invalidDropped    = "fairlead_invalid_dropped"
	localhostAccepted = "fairlead_localhost_accepted"
)

func counterName(o service.Origin) string { return counterPrefix + digest(o.String()) }

// choose gives counters to Service ports. It returns the change with all pools of
// those that got one: the chains of these are other ones now. Without a counter
// Services are served all the same.
func (c *counters) choose(t *service.Table, change service.Change) service.Change {
	if c.limit == 0 {
		return change
	}
	var wanted []service.Origin
	if c.known {
		wanted = c.missing(t, change.Pools)
	} else {
		wanted = c.everything(t)
		c.packets = nfacct.Add(invalidDropped, localhostAccepted) == nil
	}
	var also []service.PoolID
	for _, origin := range wanted {
		if !c.add(origin) {
			continue
		}
		for _, id := range poolsOf(origin) {
			if _, named := slices.BinarySearchFunc(change.Pools, id, service.PoolID.Compare); !named && t.Has(id) {
				also = append(also, id)
			}
		}
	}
	c.known = true
	if len(also) > 0 {
		change.Pools = slices.SortedFunc(slices.Values(slices.Concat(change.Pools, also)), service.PoolID.Compare)
	}
	return change
}

// add gives a Service port a counter if one is left.
func (c *counters) add(origin service.Origin) bool {
	name := counterName(origin)
	if len(c.of) >= c.limit || nfacct.Add(name) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.of[origin] = name
	delete(c.left, name)
	return true
}

// missing are the Service ports of pools that have no counter.
func (c *counters) missing(t *service.Table, pools []service.PoolID) []service.Origin {
	var out []service.Origin
	for _, id := range pools {
		if _, counted := c.of[id.Origin]; !counted && len(c.of) < c.limit && t.Has(id) {
			out = append(out, id.Origin)
		}
	}
	return out
}

// everything are all Service ports, those first that had a counter before this process
// began.
func (c *counters) everything(t *service.Table) []service.Origin {
	before, err := nfacct.List()
	if err != nil {
		return nil
	}
	for name := range before {
		if strings.HasPrefix(name, counterPrefix) {
			c.left[name] = true
		}
	}
	origins := map[service.Origin]bool{}
	for id := range t.Pools {
		origins[id.Origin] = true
	}
	c.mu.Lock()
	clear(c.of)
	c.mu.Unlock()
	var had, others []service.Origin
	for _, origin := range slices.SortedFunc(maps.Keys(origins), service.Origin.Compare) {
		if c.left[counterName(origin)] {
			had = append(had, origin)
		} else {
			others = append(others, origin)
		}
	}
	return append(had, others...)
}

// tidy removes the counters of Service ports that are gone, now that no rule adds to
// them. With iptables-nft the kernel forgets rules a moment later than it says: what
// is still in use is left to the next time.
func (c *counters) tidy(t *service.Table, change service.Change) {
	c.mu.Lock()
	for _, id := range change.Pools {
		name, counted := c.of[id.Origin]
		if counted && !slices.ContainsFunc(poolsOf(id.Origin), t.Has) {
			delete(c.of, id.Origin)
			c.left[name] = true
		}
	}
	c.mu.Unlock()
	for name := range c.left {
		if nfacct.Delete(name) == nil {
			delete(c.left, name)
		}
	}
}

// RemoveCounters removes all counters that are ours, also those that the kernel has not
// yet noticed to be in no rule any more.
func RemoveCounters(ctx context.Context) error {
	all, err := nfacct.List()
	if err != nil {
		return nil // the kernel has none
	}
	ours := []string{invalidDropped, localhostAccepted}
	for name := range all {
		if strings.HasPrefix(name, counterPrefix) {
			ours = append(ours, name)
		}
	}
	for tries := 0; ; tries++ {
		err := nfacct.Delete(ours...)
		if !errors.Is(err, nfacct.ErrInUse) || tries == 40 {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// read says how many connections each Service port has got that is counted.
func (c *counters) read() (map[service.Origin]uint64, error) {
	c.mu.Lock()
	of := maps.Clone(c.of)
	c.mu.Unlock()
	if len(of) == 0 {
		return nil, nil
	}
	packets, err := nfacct.List()
	if err != nil {
		return nil, err
	}
	out := make(map[service.Origin]uint64, len(of))
	for origin, name := range of {
		out[origin] = packets[name]
	}
	return out, nil
}

// Packets are how many there were of some kinds.
type Packets struct {
	InvalidDropped    uint64 // not to be placed by connection tracking, see Options.DropInvalid
	LocalhostAccepted uint64 // connections, by their first packet, to node ports on localhost
}

// Packets says how many packets were counted, which is nothing if connections are not.
// It is safe for concurrent use.
func (b *Backend) Packets() (Packets, error) {
	if b.counters.limit == 0 {
		return Packets{}, nil
	}
	n, err := nfacct.List()
	return Packets{InvalidDropped: n[invalidDropped], LocalhostAccepted: n[localhostAccepted]}, err
}

// poolsOf are the pools that a Service port may have.
func poolsOf(o service.Origin) []service.PoolID {
	return []service.PoolID{
		{Origin: o}, {Origin: o, Local: true},
		{Origin: o, IPv6: true}, {Origin: o, IPv6: true, Local: true},
	}
}
