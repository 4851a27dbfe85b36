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
