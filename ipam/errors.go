package ipam

import (
	"fmt"
	"net/netip"
)

// ExhaustedError says that every address of a set is held. It passes when an
// owner lets go of one.
type ExhaustedError struct {
	Set Set
}

func (e *ExhaustedError) Error() string { return "no addresses left in " + e.Set.String() }

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
