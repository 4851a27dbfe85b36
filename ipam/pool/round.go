package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/ipam"
)

// round is one Sync.
type round struct {
	*Lessor
	view  View
	now   time.Time
	books []*book
	// complete: the books are those of all networks. One that is missing may have
	// what seems free.
	complete bool
	again    time.Time
	found    []Problem
}

// run does what there is to do, in the order in which one thing needs the other.
func (r *round) run(ctx context.Context) []error {
	var errs []error
	for _, b := range r.books {
		for _, g := range b.grants {
			errs = append(errs, r.confirm(ctx, b, g))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.view.Blocks)) {
		if b := r.view.Blocks[name]; b.Node == r.node {
			errs = append(errs, r.own(ctx, b))
		}
	}
	for _, b := range r.books {
		for _, pool := range b.pools() {
			errs = append(errs, r.balance(ctx, b, pool))
		}
	}
	return errs
}

// waitForView leaves all as it is.
func (r *round) waitForView() {
	for _, b := range r.books {
		for _, pool := range b.pools() {
			r.notes[pool] = "'fairlead node' does not know the cluster's pools yet"
			if r.view.Why != "" {
				r.notes[pool] += ": " + r.view.Why
			}
		}
	}
}

// confirm sees whether a grant is still in order.
func (r *round) confirm(ctx context.Context, b *book, g granted) error {
	block, ok := r.view.Blocks[BlockName(g.Block)]
	mine := func(x Block) bool { return x.Node == r.node && x.Prefix == g.Block && r.networkOf(x) == b.network }
	if ok && mine(block) {
		return r.confirmMine(ctx, b, g, block)
	}
	if r.api == nil {
		return r.unassigned(ctx, b, g, ok)
	}
	// The watch may be behind what this process, or one before it, has written.
	block, ok, err := r.api.Get(ctx, BlockName(g.Block))
	switch {
	case err != nil:
		return fmt.Errorf("look for %s: %w", BlockName(g.Block), err)
	case ok && mine(block):
		return nil
	case !ok:
		// Somebody removed the object by hand. Pods may have addresses of it.
		r.problem(KindBlock, BlockName(g.Block), "it was removed while node %s has pods or room in it: it is made again", r.node)
		_, err := r.create(ctx, b.network, g.Range.Pool, g.Block)
		return err
	}
	r.problem(KindBlock, block.Name, "node %s has it now, and node %s gave addresses of it", block.Node, r.node)
	return r.closeGrant(ctx, b, g, ipam.Lost)
}

// confirmMine sees whether a grant is still of its pool. One that was lost is not
// opened again here: the watch may show a time before that.
func (r *round) confirmMine(ctx context.Context, b *book, g granted, block Block) error {
	pool, exists := r.view.Pools[g.Range.Pool]
	switch {
	case !exists || block.Pool != pool.Name || !pool.has(g.Block) || pool.rangeOf(g.Block) != g.Range:
		return r.closeGrant(ctx, b, g, ipam.Retired)
	case g.Closed == ipam.Lost && r.api != nil:
		return nil
	}
	return r.closeGrant(ctx, b, g, "")
}

// unassigned handles a grant of a block that the manifests give to another
// network, another node or nobody.
func (r *round) unassigned(ctx context.Context, b *book, g granted, another bool) error {
	reason := ipam.Retired
	if another {
		reason = ipam.Lost
	}
	if g.Used+g.Cooling > 0 {
		r.problem(KindBlock, BlockName(g.Block), "it is not node %s's any more, and pods have, or just had, addresses of it: do not give it to another node yet", r.node)
	}
	return r.closeGrant(ctx, b, g, reason)
}

// closeGrant closes a grant, or opens it again; one of which nothing is held
// goes.
func (r *round) closeGrant(ctx context.Context, b *book, g granted, reason ipam.Closed) error {
	if reason == g.Closed && (reason == "" || g.Used+g.Cooling > 0) {
		return nil
	}
	return r.change(ctx, b, fmt.Sprintf("close block %s", g.Block), func(tx ipam.Tx, _ string) error {
		if reason != "" {
			err := ipam.Withdraw(tx, g.Grant, r.now)
			if !errors.Is(err, ipam.ErrInUse) {
				return err
			}
		}
		g.Closed = reason
		return ipam.PutGrant(tx, g.Grant)
	})
}

// change writes to a network's store and reads it again.
func (r *round) change(ctx context.Context, b *book, what string, f func(ipam.Tx, string) error) error {
	if err := r.stores.Update(ctx, b.network, f); err != nil {
		return fmt.Errorf("%s in network %s: %w", what, b.network, err)
	}
	fresh, err := r.read(ctx, b.network, r.now)
	if err == nil {
		*b = *fresh
	}
	return err
}

// own handles a block that is this node's by its object: one that is granted, or
// is to be, or was left behind by a process that ended.
func (r *round) own(ctx context.Context, block Block) error {
	b := r.bookOf(r.networkOf(block))
	lost := false
	if b != nil {
		g, ok := b.has(block.Prefix)
		lost = ok && g.Closed == ipam.Lost
		if ok && !lost {
			delete(r.acked, block.Name)
			return nil
		}
	}
	pool, ok := r.view.Pools[block.Pool]
	useful := b != nil && ok && pool.has(block.Prefix) && block.Name == BlockName(block.Prefix)
	switch {
	case r.api == nil:
		return r.assigned(ctx, b, pool, block, useful)
	case !useful:
		return r.release(ctx, block)
	case r.acked[block.Name].Version == block.Version && r.acked[block.Name].UID == block.UID:
		return r.grant(ctx, b, pool, block)
	case r.short(b, pool) || lost:
		return r.claim(ctx, b.network, block)
	case r.acked[block.Name].Version != "":
		return nil // the watch has yet to show it
	}
	return r.release(ctx, block)
}

// assigned grants a block that the manifests give to this node.
func (r *round) assigned(ctx context.Context, b *book, pool Pool, block Block, useful bool) error {
	switch {
	case b == nil: // no network wants it yet
		return nil
	case !useful:
		r.problem(KindBlock, block.Name, "%s is not a block of IPPool %s, or its name is not %s: it is not used", block.Prefix, block.Pool, BlockName(block.Prefix))
		return nil
	}
	if other := r.overlapping(block); other != "" {
		r.problem(KindBlock, block.Name, "it overlaps IPBlock %s: it is not used", other)
		return nil
	}
	return r.grant(ctx, b, pool, block)
}

// grant hands a block to the store, if no other overlaps it.
func (r *round) grant(ctx context.Context, b *book, pool Pool, block Block) error {
	if other := r.overlapping(block); other != "" {
		r.problem(KindBlock, block.Name, "it overlaps IPBlock %s: it is given back", other)
		return r.release(ctx, block)
	}
	g := ipam.Grant{Block: block.Prefix, Range: pool.rangeOf(block.Prefix)}
	err := r.change(ctx, b, fmt.Sprintf("grant block %s", block.Prefix), func(tx ipam.Tx, _ string) error { return ipam.PutGrant(tx, g) })
	if err == nil {
		delete(r.acked, block.Name)
	}
	return err
}

// overlapping is the name of another block that overlaps one; "": there is none.
func (r *round) overlapping(block Block) string {
	for _, name := range slices.Sorted(maps.Keys(r.view.Blocks)) {
		if name != block.Name && r.view.Blocks[name].Prefix.Overlaps(block.Prefix) {
			return name
		}
	}
	return ""
}

// networkOf is the network that a block is for. Manifests need not say it; then
// it is the one that has it, or else the first one that wants the pool.
func (r *round) networkOf(block Block) string {
	if block.Network != "" {
		return block.Network
	}
	for _, b := range r.books {
		if _, ok := b.has(block.Prefix); ok {
			return b.network
		}
	}
	for _, b := range r.books {
		if _, wanted := b.wanted[block.Pool]; wanted {
			return b.network
		}
	}
	return ""
}

func (r *round) bookOf(network string) *book {
	for _, b := range r.books {
		if b.network == network {
			return b
		}
	}
	return nil
}

func (r *round) problem(kind, name, format string, args ...any) {
	r.found = append(r.found, Problem{kind, name, fmt.Sprintf(format, args...)})
}

// A node leases a further block when of those that it has less than a quarter of
// one is left, and gives one back when the others have more than half of one.
// What lies between keeps a block from coming and going with one pod.

// short says that the network needs a further block of the pool.
func (r *round) short(b *book, pool Pool) bool {
	if !r.wants(b, pool.Name) {
		return false
	}
	free, size := left(b.of(pool.Name))
	return free*4 < max(size, 4)
}

// left is how much is free of grants, and the size of the largest.
func left(grants []granted) (free, size uint64) {
	for _, g := range grants {
		free += min(g.Free(), 1<<32)
		size = max(size, min(g.Size, 1<<32))
	}
	return free, size
}

// wants says that the network uses the pool.
func (r *round) wants(b *book, pool string) bool {
	at, ok := b.wanted[pool]
	return ok && r.now.Sub(at) < r.options.Forget
}

// balance leases a further block of a pool for a network, or gives one back.
func (r *round) balance(ctx context.Context, b *book, name string) error {
	pool, ok := r.view.Pools[name]
	if !ok {
		r.notes[name] = fmt.Sprintf("the cluster has no valid IPPool %s", name)
		if r.wants(b, name) {
			r.problem(KindPool, name, "network %s wants addresses of it, and there is no valid IPPool of this name", b.network)
		}
		return nil
	}
	if r.api == nil {
		if r.short(b, pool) {
			r.notes[name] = fmt.Sprintf("no further IPBlock of the pool is assigned to node %s", r.node)
		}
		return nil
	}
	if !r.short(b, pool) {
		return r.giveBack(ctx, b, pool)
	}
	if r.isPending(b.network, name) {
		return nil // one at a time
	}
	return r.lease(ctx, b, pool)
}

// isPending says that a block was acknowledged and is to be granted.
func (r *round) isPending(network, pool string) bool {
	for _, p := range r.acked {
		if p.Network == network && p.Pool == pool {
			return true
		}
	}
	return false
}

// giveBack gives back one block that has been of no use for a while.
func (r *round) giveBack(ctx context.Context, b *book, pool Pool) error {
	grants := b.of(pool.Name)
	free, size := left(grants)
	wanted := r.wants(b, pool.Name)
	for _, g := range slices.Backward(grants) { // pods fill the first ones first
		name := BlockName(g.Block)
		if g.Used+g.Cooling > 0 || wanted && (free-min(g.Free(), 1<<32))*2 <= size {
			delete(r.idle, name)
			continue
		}
		since, known := r.idle[name]
		if !known {
			since = r.now
			r.idle[name] = since
		}
		if due := since.Add(r.options.Idle); r.now.Before(due) {
			r.wake(due)
			continue
		}
		delete(r.idle, name)
		return r.withdraw(ctx, b, g.Grant)
	}
	return nil
}

// wake has Sync called again at a time.
func (r *round) wake(at time.Time) {
	if r.again.IsZero() || at.Before(r.again) {
		r.again = at
	}
}

// withdraw takes a block from the store, and then gives it back.
func (r *round) withdraw(ctx context.Context, b *book, g ipam.Grant) error {
	err := r.change(ctx, b, fmt.Sprintf("withdraw block %s", g.Block), func(tx ipam.Tx, _ string) error {
		return ipam.Withdraw(tx, g, r.now)
	})
	if errors.Is(err, ipam.ErrInUse) {
		return nil // a pod was faster
	}
	if err != nil {
		return err
	}
	if block, ok := r.view.Blocks[BlockName(g.Block)]; ok && block.Node == r.node {
		return r.release(ctx, block)
	}
	return nil
}

// report writes to the stores what is to be said of the pools, and sums up.
func (r *round) report(ctx context.Context) (Report, error) {
	report := Report{Problems: r.found, Again: r.again, Complete: r.complete}
	var errs []error
	for _, b := range r.books {
		for _, pool := range b.pools() {
			n := NetworkReport{Network: b.network, Pool: pool, Wanted: r.wants(b, pool), Note: r.notes[pool]}
			for _, g := range b.of(pool) {
				n.Blocks = append(n.Blocks, g.Block)
				n.Used += g.Used
				n.Cooling += g.Cooling
				n.Free += min(g.Free(), 1<<32)
			}
			report.Networks = append(report.Networks, n)
			errs = append(errs, r.say(ctx, b, pool))
		}
	}
	return report, errors.Join(errs...)
}

// say writes why nothing more is got of a pool, and the routes of its pods.
func (r *round) say(ctx context.Context, b *book, pool string) error {
	state := ipam.PoolState{Note: r.notes[pool]}
	if r.options.Routes != nil {
		p, known := r.view.Pools[pool]
		routes, ok := r.options.Routes(p)
		if !known || !ok {
			routes = b.states[pool].Routes
		}
		state.Routes = routes
	}
	if state.Equal(b.states[pool]) {
		return nil
	}
	err := r.stores.Update(ctx, b.network, func(tx ipam.Tx, _ string) error { return ipam.PutState(tx, pool, state) })
	if err != nil {
		return fmt.Errorf("write state of pool %s in network %s: %w", pool, b.network, err)
	}
	return nil
}

func prefixes(blocks map[string]Block) []netip.Prefix {
	var all []netip.Prefix
	for _, b := range blocks {
		all = append(all, b.Prefix)
	}
	return all
}
