package ipam

import (
	"fmt"
	"net/netip"
)

// ExhaustedError says that every address of a set is held. It passes when an
// owner lets go of one.
type ExhaustedError struct {
	Set Set
	// Note is why the node gets no further block, where the set is of a pool.
	Note string
}

func (e *ExhaustedError) Error() string {
	pool := e.Set[0].Pool
	if pool == "" {
		return "no addresses left in " + e.Set.String()
	}
	return noted("no addresses left in the blocks of pool "+pool+" that this node has, "+e.Set.String(), e.Note)
}

func noted(text, note string) string {
	if note == "" {
		return text
	}
	return text + ": " + note
}

// NoBlockError says that the node has no block of a pool. It passes when the
// node's daemon gets one.
type NoBlockError struct {
	Pool string
	Note string // why it gets none; "" if that is not known
}

func (e *NoBlockError) Error() string {
	text := "this node has no block of pool " + e.Pool
	if e.Note == "" {
		return text + " yet: 'fairlead node' leases one"
	}
	return noted(text, e.Note)
}

// LostError says that the addresses of pods that run here are another node's now.
type LostError struct {
	Grant Grant
}

func (e *LostError) Error() string {
	return fmt.Sprintf("block %s of pool %s was given to another node, and pods of this node still have addresses of it",
		e.Grant.Block, e.Grant.Range.Pool)
}

// ReservedError says that a pod holds an address that the configuration, which
// was changed since, reserves. The two disturb each other until the pod goes.
type ReservedError struct {
	Addr  netip.Addr
	What  string // what the configuration has the address for
	Owner Owner  // who holds it
}

func (e *ReservedError) Error() string {
	return fmt.Sprintf("address %s is %s, and %s holds it", e.Addr, e.What, e.Owner)
}

// ConflictError says that a lease cannot be imported.
type ConflictError struct {
	Lease Lease
	Held  Lease // what is held of it by another, or by the same owner otherwise
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s of %s: %s holds %s", e.Lease.Addrs, e.Lease.Owner, e.Held.Owner, e.Held.Addrs)
}

// HeldError says that another owner holds the address that was requested. It
// passes when that owner lets go.
type HeldError struct {
	Addr  netip.Addr
	Owner Owner // who holds it
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("address %s is held by %s", e.Addr, e.Owner)
}

// DuplicateError says that the owner who asks has addresses already.
type DuplicateError struct {
	Owner Owner
	Addrs []netip.Addr
}

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("%s holds addresses already: %s", e.Owner, e.Addrs)
}

// RequestError says that the address requested is none that the sets can ever
// give.
type RequestError struct {
	Addr   netip.Addr
	Reason string
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("address %s cannot be given: %s", e.Addr, e.Reason)
}
