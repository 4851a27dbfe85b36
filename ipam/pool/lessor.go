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

// Lessor leases blocks for one node. A block has one object, whose name follows
// from its addresses; spec.node is who holds it. Three rules make that no block
// is given by two nodes, whatever is lost, late, stale or killed:
//
//  1. Addresses are given only of grants in the node's store, and a grant is
//     written only after a write of this very process on the object was
//     acknowledged and has come back by the watch as what the object is. That the
//     watch has got that far also means that it knows every block made before: if
//     one overlaps, under another name, there is no grant.
//  2. Every write but creation names the version that it changes, and makes
//     another one. What a request that seemed lost would do later is thereby
//     forestalled by the next write, and there is always one before a grant.
//  3. An object is removed only after the store, in one transaction, saw that
//     nothing of the block is held or cooling and took the grant away.
//
// So there must be one Lessor at a time on a node (its caller holds a lock), and
// after a reboot grants are gone (see ipam.Grant): the blocks are claimed anew.
//
// A node whose Node object is gone for Options.Grace gets its blocks taken away
// when others need them. That a node is gone is believed of the API, which
// nobody but its operator can be wrong about: pods that go on running there keep
// their addresses.
//
// It is for one goroutine.
type Lessor struct {
	node    string
	api     API // nil: blocks are assigned by others, and only granted here
	stores  Stores
	options Options

	acked     map[string]pending   // name of a block → this process's last acknowledged write
	refused   map[string]time.Time // name of a block → when the API said that it is there, unseen by the watch
	goneSince map[string]time.Time // node → when it was first seen to be gone
	notes     map[string]string    // pool → why nothing more is got of it
	idle      map[string]time.Time // name of a block → since when it could be given back
}

// Options are the Lessor's ways.
type Options struct {
	Grace  time.Duration // for how long a node must be gone before its blocks are taken
	Idle   time.Duration // for how long a block is kept that could be given back
	Forget time.Duration // for how long a pool counts as wanted that nobody asks for
	Claim  func() string // a new one each time
	// Routes are those that pods need which get an address of a pool. They are not
	// known yet where ok is false. A nil function: there are none.
	Routes func(Pool) (routes []ipam.PoolRoute, ok bool)
}

// pending is an acknowledged write that the watch has yet to show.
type pending struct {
	Block
	at time.Time
}

// API writes IPBlocks. Its errors wrap ErrConflict where nothing was done because
// the object is not what was thought, and then the watch will show what it is.
// After any other error the write may have happened, or happen later.
type API interface {
	// Create makes an object. It returns it with UID and Version.
	Create(context.Context, Block) (Block, error)
	// Update replaces an object that still has the Version.
	Update(context.Context, Block) (Block, error)
	// Delete removes an object that still has the UID and the Version.
	Delete(context.Context, Block) error
	// Get asks for an object itself, not for what was known of it a while ago.
	// ok is false if there is none.
	Get(ctx context.Context, name string) (b Block, ok bool, err error)
	// NodeExists asks for a Node object, likewise.
	NodeExists(ctx context.Context, name string) (bool, error)
}

// ErrConflict says that the object is there (Create), or is not what it was.
var ErrConflict = errors.New("conflict")

// Stores are the node's stores of addresses, one for each network.
type Stores interface {
	Networks() ([]string, error)
	// Update runs f in a transaction in which every row is of the running boot,
	// which it names.
	Update(ctx context.Context, network string, f func(tx ipam.Tx, boot string) error) error
}

// View is what is known of the cluster, which may be long ago but is never older
// than what was known before.
type View struct {
	Synced bool             // the rest is known
	Why    string           // why it is not, or may be out of date; "" if nothing is wrong
	Pools  map[string]Pool  // by name; those that are valid
	Blocks map[string]Block // by the name of the object
	Nodes  map[string]bool  // that exist
}

// NewLessor makes the Lessor of a node.
func NewLessor(node string, api API, stores Stores, o Options) *Lessor {
	return &Lessor{
		node: node, api: api, stores: stores, options: o,
		acked: map[string]pending{}, refused: map[string]time.Time{},
		goneSince: map[string]time.Time{}, idle: map[string]time.Time{},
	}
}

// Report is how things stand after Sync.
type Report struct {
	Networks []NetworkReport
	Problems []Problem
	Complete bool // Networks are all that there are
	// Again is when Sync has something to do though nothing happens; zero: never.
	Again time.Time
}

// NetworkReport is a pool as one network of the node uses it.
type NetworkReport struct {
	Network, Pool string
	Wanted        bool
	Blocks        []netip.Prefix // granted, and not closed
	Used, Cooling int
	Free          uint64
	Note          string // why the node gets no further block of the pool
}

// Sync does what there is to do: it takes in what the watch has shown, leases
// blocks where they run short and gives back those that are not needed. The error
// is that of all that failed; the rest is done.
func (l *Lessor) Sync(ctx context.Context, v View, now time.Time) (Report, error) {
	if v.Synced {
		l.observe(v, now)
	}
	l.notes = map[string]string{}
	networks, err := l.stores.Networks()
	errs := []error{err}
	var books []*book
	for _, network := range networks {
		b, err := l.read(ctx, network, now)
		errs = append(errs, err)
		if err == nil {
			books = append(books, b)
		}
	}
	s := &round{Lessor: l, view: v, now: now, books: books, complete: err == nil && len(books) == len(networks)}
	switch {
	case !v.Synced:
		s.waitForView()
	case s.complete:
		errs = append(errs, s.run(ctx)...)
	}
	report, err := s.report(ctx)
	return report, errors.Join(append(errs, err)...)
}

// observe keeps account of what the view shows.
func (l *Lessor) observe(v View, now time.Time) {
	for _, b := range v.Blocks {
		if v.Nodes[b.Node] {
			delete(l.goneSince, b.Node)
		} else if _, known := l.goneSince[b.Node]; !known {
			l.goneSince[b.Node] = now
		}
	}
	// What the watch does not show by now it will not, as when it was removed
	// at once. To drop it is safe: it is claimed anew before it counts.
	maps.DeleteFunc(l.acked, func(name string, p pending) bool {
		return v.Blocks[name].Version != p.Version && now.Sub(p.at) > ackPatience
	})
	maps.DeleteFunc(l.refused, func(name string, at time.Time) bool {
		_, seen := v.Blocks[name]
		return seen || now.Sub(at) > ackPatience
	})
}

const ackPatience = 30 * time.Second

// book is what a network's store says.
type book struct {
	network string
	grants  []granted
	wanted  map[string]time.Time
	states  map[string]ipam.PoolState
}

type granted struct {
	ipam.Grant
	ipam.BlockUsage
}

// read reads a network's store.
func (l *Lessor) read(ctx context.Context, network string, now time.Time) (*book, error) {
	b := &book{network: network, states: map[string]ipam.PoolState{}}
	err := l.stores.Update(ctx, network, func(tx ipam.Tx, boot string) error {
		grants, err := ipam.Grants(tx, boot)
		if err != nil {
			return err
		}
		for _, g := range grants {
			u, err := ipam.UsageOf(tx, g, now)
			if err != nil {
				return err
			}
			b.grants = append(b.grants, granted{g, u})
		}
		if b.wanted, err = ipam.Wanted(tx); err != nil {
			return err
		}
		for pool := range b.wanted {
			if b.states[pool], err = ipam.StateOf(tx, pool); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read blocks of network %s: %w", network, err)
	}
	return b, nil
}

// has returns the grant of a block, whatever pool it was granted of.
func (b *book) has(block netip.Prefix) (granted, bool) {
	i := slices.IndexFunc(b.grants, func(g granted) bool { return g.Block == block })
	if i < 0 {
		return granted{}, false
	}
	return b.grants[i], true
}

// of are the grants of a pool that are not closed.
func (b *book) of(pool string) []granted {
	return slices.DeleteFunc(slices.Clone(b.grants), func(g granted) bool { return g.Range.Pool != pool || g.Closed != "" })
}

// pools are the names of those that the network has to do with, in order.
func (b *book) pools() []string {
	names := slices.Collect(maps.Keys(b.wanted))
	for _, g := range b.grants {
		names = append(names, g.Range.Pool)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
