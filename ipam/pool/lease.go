package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// attempts is how many blocks one Sync tries to get before it lets the watch
// catch up.
const attempts = 8

// lease gets a block of the pool: a free one, or else one of a node that is gone.
func (r *round) lease(ctx context.Context, b *book, pool Pool) error {
	free := r.free(pool)
	for range attempts {
		block, ok := free()
		if !ok {
			return r.takeOver(ctx, b, pool)
		}
		done, err := r.create(ctx, b.network, pool.Name, block)
		if done || err != nil {
			return err
		}
	}
	return nil
}

// free returns, one at each call, the blocks that nobody is known to have.
func (r *round) free(pool Pool) func() (netip.Prefix, bool) {
	taken := prefixes(r.view.Blocks)
	for _, p := range r.acked {
		taken = append(taken, p.Prefix)
	}
	slices.SortFunc(taken, netip.Prefix.Compare)
	// Of taken blocks only those of this pool's size are looked up; others, which
	// a pool that is gone has left, make the search a walk.
	odd := slices.DeleteFunc(slices.Clone(taken), func(p netip.Prefix) bool { return p.Bits() == pool.Bits })
	start, count, next := pool.start(r.node), pool.blocks(), uint64(0)
	return func() (netip.Prefix, bool) {
		for ; next < count; next++ {
			block := pool.block((start + next) % count)
			_, known := slices.BinarySearchFunc(taken, block, netip.Prefix.Compare)
			_, refused := r.refused[BlockName(block)]
			if known || refused || slices.ContainsFunc(odd, block.Overlaps) || pool.rangeOf(block).Size() == 0 {
				continue
			}
			next++
			return block, true
		}
		return netip.Prefix{}, false
	}
}

// create makes the object of a block, which is to become its holder. done is
// false if another node was faster.
func (r *round) create(ctx context.Context, network, pool string, block netip.Prefix) (done bool, err error) {
	want := Block{Name: BlockName(block), Pool: pool, Prefix: block, Node: r.node, Network: network, Claim: r.options.Claim()}
	made, err := r.api.Create(ctx, want)
	switch {
	case errors.Is(err, ErrConflict):
		r.refused[want.Name] = r.now
		r.wake(r.now.Add(ackPatience))
		return false, nil
	case err != nil:
		r.notes[pool] = fmt.Sprintf("block %s: %v", block, err)
		return false, fmt.Errorf("lease block %s: %w", block, err)
	}
	r.acked[made.Name] = pending{made, r.now}
	return true, nil
}

// claim writes a block's object anew, as this node's. Only what that makes of it
// is believed.
func (r *round) claim(ctx context.Context, network string, block Block) error {
	if p, ok := r.acked[block.Name]; ok && p.Version != block.Version && r.now.Sub(p.at) < ackPatience {
		return nil // claimed already, and the watch has yet to show it
	}
	delete(r.acked, block.Name)
	block.Node, block.Network, block.Claim = r.node, network, r.options.Claim()
	made, err := r.api.Update(ctx, block)
	switch {
	case errors.Is(err, ErrConflict):
		return nil // the watch will show what it is
	case err != nil:
		r.notes[block.Pool] = fmt.Sprintf("block %s: %v", block.Prefix, err)
		return fmt.Errorf("claim block %s: %w", block.Prefix, err)
	}
	r.acked[made.Name] = pending{made, r.now}
	return nil
}

// release removes the object of a block of this node's that is not granted.
func (r *round) release(ctx context.Context, block Block) error {
	delete(r.acked, block.Name)
	err := r.api.Delete(ctx, block)
	if err != nil && !errors.Is(err, ErrConflict) { // the watch will show what it is
		return fmt.Errorf("give back block %s: %w", block.Prefix, err)
	}
	return nil
}

// takeOver takes a block of a node that has been gone for long enough.
func (r *round) takeOver(ctx context.Context, b *book, pool Pool) error {
	waiting := 0
	for _, name := range slices.Sorted(maps.Keys(r.view.Blocks)) {
		block := r.view.Blocks[name]
		since, gone := r.goneSince[block.Node]
		if !gone || block.Pool != pool.Name || block.Node == r.node || !pool.has(block.Prefix) || pool.rangeOf(block.Prefix).Size() == 0 {
			continue
		}
		if due := since.Add(r.options.Grace); r.now.Before(due) {
			waiting++
			r.wake(due)
			continue
		}
		exists, err := r.api.NodeExists(ctx, block.Node)
		if err != nil {
			return fmt.Errorf("take over block %s of node %s: %w", block.Prefix, block.Node, err)
		}
		if !exists {
			return r.claim(ctx, b.network, block)
		}
		delete(r.goneSince, block.Node)
	}
	r.notes[pool.Name] = fmt.Sprintf("all %d blocks of the pool are leased", pool.blocks())
	if waiting > 0 {
		r.notes[pool.Name] += fmt.Sprintf(", %d of them by nodes that are gone for less than %s", waiting, r.options.Grace)
	}
	return nil
}
