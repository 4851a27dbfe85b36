package ipam

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Grant is a block of a pool that spans the cluster, leased to this node: its
// pods, and no other node's, get addresses of it. The node's daemon writes and
// withdraws grants; Allocate gives addresses of nothing else of a pool.
//
// A grant is of one boot: after a reboot, before which the node may have been
// off for long, its blocks count only once the daemon has seen that they are
// still its own.
type Grant struct {
	Block netip.Prefix `json:"block"`
	Range Range        `json:"range"` // what of Block can be given; Range.Pool names the pool
	// Closed says why no more addresses are given of it, though some are held; ""
	// if they are.
	Closed Closed `json:"closed,omitempty"`
}

// Closed is why a grant is closed.
type Closed string

// The reasons.
const (
	Lost    Closed = "lost"    // another node has the block now
	Retired Closed = "retired" // its pool is gone, or it was taken from this node
)

func (g Grant) key() []byte { return appendAddr(poolKey(grantPrefix, g.Range.Pool), g.Block.Addr()) }

// poolKey ends in a byte that no pool's name has, so that no pool's keys begin
// with another's.
func poolKey(prefix byte, pool string) []byte {
	return append(append([]byte{prefix}, pool...), 0)
}

// Grants returns the grants of the boot, in the order of pools and blocks.
func Grants(tx Tx, boot string) ([]Grant, error) {
	current, err := isOfBoot(tx, boot)
	if err != nil || !current {
		return nil, err
	}
	return grantsAt(tx, []byte{grantPrefix})
}

func grantsAt(tx Tx, prefix []byte) ([]Grant, error) {
	var grants []Grant
	err := each(tx, prefix, func(k, v []byte) error {
		var g Grant
		if err := json.Unmarshal(v, &g); err != nil {
			return fmt.Errorf("decode grant % x: %w", k, err)
		}
		grants = append(grants, g)
		return nil
	})
	return grants, err
}

// PutGrant writes a grant, or what has changed of it. It must follow Reclaim in
// the same transaction. Its block must overlap no other grant's.
func PutGrant(tx Tx, g Grant) error {
	grants, err := grantsAt(tx, []byte{grantPrefix})
	if err != nil {
		return err
	}
	for _, other := range grants {
		same := other.Block == g.Block && other.Range.Pool == g.Range.Pool
		if !same && other.Block.Overlaps(g.Block) {
			return fmt.Errorf("grant block %s of pool %s: it overlaps %s of pool %s, which is granted already",
				g.Block, g.Range.Pool, other.Block, other.Range.Pool)
		}
	}
	text, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("encode grant of %s: %w", g.Block, err)
	}
	return tx.Put(g.key(), text)
}

// ErrInUse says that a block has an address that is held or cooling.
var ErrInUse = errors.New("in use")

// Withdraw ends a grant unless an address of it is held or cooling, which is
// ErrInUse. Whoever calls Allocate afterwards gets nothing of the block; so
// once the transaction is on disk, the block can go to another node.
func Withdraw(tx Tx, g Grant, now time.Time) error {
	u, err := UsageOf(tx, g, now)
	if err != nil {
		return err
	}
	if u.Used > 0 || u.Cooling > 0 {
		return ErrInUse
	}
	b, err := openBook(tx)
	if err != nil {
		return err
	}
	for _, s := range b.stocks {
		if s.First != g.Range.First || s.Last != g.Range.Last {
			continue
		}
		if err := s.forget(tx); err != nil {
			return err
		}
	}
	return tx.Delete(g.key())
}

// BlockUsage is how much of a block is given. The rest is free.
type BlockUsage struct {
	Size    uint64 // addresses that it can give when none is held; at most 1<<63
	Used    int    // held
	Cooling int    // freed less than the network's cooldown ago
}

// Free is how many addresses can be given at once, without one that is cooling.
func (u BlockUsage) Free() uint64 { return u.Size - min(u.Size, uint64(u.Used+u.Cooling)) }

// UsageOf counts what is held of a block, whatever configuration it was given by.
func UsageOf(tx Tx, g Grant, now time.Time) (BlockUsage, error) {
	whole := stock{First: g.Block.Addr(), Last: LastAddr(g.Block)}
	var u BlockUsage
	err := eachFrom(tx, addrKey(whole.First), []byte{addrPrefix}, func(k, _ []byte) error {
		addr, err := parseAddr(k[1:])
		if err == nil && !whole.contains(addr) {
			return errStop
		}
		u.Used++
		return err
	})
	if err != nil && !errors.Is(err, errStop) {
		return u, err
	}
	cooling := map[netip.Addr]bool{} // an address may be in the queues of several stocks
	b, err := openBook(tx)
	if err != nil {
		return u, err
	}
	for _, s := range b.stocks {
		queue, err := s.cooling(tx, now)
		if err != nil {
			return u, err
		}
		for _, q := range queue {
			if whole.contains(q.addr) {
				cooling[q.addr] = true
			}
		}
	}
	u.Cooling = len(cooling)
	u.Size = g.Range.Size()
	return u, nil
}

// errStop ends a walk over keys.
var errStop = errors.New("stop")

// Size is how many addresses the range can give when it is all there is, at most
// 1<<63.
func (r Range) Size() uint64 {
	var keptOut []netip.Addr
	for addr := range reserved([]Set{{r}}) {
		if r.Contains(addr) {
			keptOut = append(keptOut, addr)
		}
	}
	n := (&stock{First: r.First, Last: r.Last, KeptOut: keptOut}).size()
	if n.Sign() <= 0 {
		return 0
	}
	if !n.IsUint64() {
		return 1 << 63
	}
	return min(n.Uint64(), 1<<63)
}

// PoolState is what the node's daemon has to say about a pool.
type PoolState struct {
	// Note is why the node gets no further block; "" if nothing is in the way.
	Note string `json:"note,omitempty"`
	// Routes are for every pod that gets an address of the pool.
	Routes []PoolRoute `json:"routes,omitempty"`
}

// Equal says whether both say the same.
func (s PoolState) Equal(other PoolState) bool {
	return s.Note == other.Note && slices.Equal(s.Routes, other.Routes)
}

// PoolRoute is a route of a pod: to Dst by a neighbour, or, where Via is the zero
// Addr, to Dst on the link.
type PoolRoute struct {
	Dst netip.Prefix `json:"dst"`
	Via netip.Addr   `json:"via,omitzero"`
}

// StateOf returns what was last said about a pool.
func StateOf(tx Tx, pool string) (PoolState, error) {
	var s PoolState
	text, err := get(tx, poolKey(statePrefix, pool))
	if err != nil || text == nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("decode state of pool %s: %w", pool, err)
	}
	return s, nil
}

// PutState says something new about a pool.
func PutState(tx Tx, pool string, s PoolState) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode state of pool %s: %w", pool, err)
	}
	return tx.Put(poolKey(statePrefix, pool), text)
}

// Want notes that the network has pods that get their addresses of a pool. The
// daemon leases blocks of the pools that are wanted. The note is renewed when it
// is an hour old; a transaction that allocates does so on its way.
func Want(tx Tx, pool string, now time.Time) error {
	key := poolKey(wantPrefix, pool)
	before, err := parseWant(get(tx, key))
	if err != nil || now.Sub(before).Abs() < time.Hour {
		return err
	}
	text, err := now.MarshalText()
	if err != nil {
		return fmt.Errorf("encode that pool %s is wanted: %w", pool, err)
	}
	return tx.Put(key, text)
}

func parseWant(text []byte, err error) (time.Time, error) {
	var at time.Time
	if err != nil || text == nil {
		return at, err
	}
	if err := at.UnmarshalText(text); err != nil {
		return at, fmt.Errorf("decode when a pool was wanted: %w", err)
	}
	return at, nil
}

// Wanted returns the pools that are wanted, and when they were last.
func Wanted(tx Tx) (map[string]time.Time, error) {
	wanted := map[string]time.Time{}
	err := each(tx, []byte{wantPrefix}, func(k, v []byte) error {
		at, err := parseWant(v, nil)
		wanted[string(bytes.TrimSuffix(k[1:], []byte{0}))] = at
		return err
	})
	return wanted, err
}

// PoolSets returns a set for each of the pools: the blocks that the node has.
// The error is *NoBlockError where it has none.
func PoolSets(tx Tx, boot string, pools []string) ([]Set, error) {
	current, err := isOfBoot(tx, boot)
	if err != nil {
		return nil, err
	}
	var sets []Set
	for _, pool := range pools {
		var set Set
		grants, err := grantsAt(tx, poolKey(grantPrefix, pool))
		if err != nil {
			return nil, err
		}
		for _, g := range grants {
			if current && g.Closed == "" {
				set = append(set, g.Range)
			}
		}
		if len(set) == 0 {
			state, err := StateOf(tx, pool)
			if err != nil {
				return nil, err
			}
			return nil, &NoBlockError{Pool: pool, Note: state.Note}
		}
		sets = append(sets, set)
	}
	return sets, nil
}

// CheckLost reports, as a *LostError, a block of one of the pools that went to
// another node while pods here have addresses of it.
func CheckLost(tx Tx, boot string, pools []string) error {
	grants, err := Grants(tx, boot)
	if err != nil {
		return err
	}
	for _, g := range grants {
		if g.Closed != Lost || !slices.Contains(pools, g.Range.Pool) {
			continue
		}
		used, err := (&stock{First: g.Range.First, Last: g.Range.Last}).isUsed(tx)
		if err != nil {
			return err
		}
		if used {
			return &LostError{Grant: g}
		}
	}
	return nil
}
