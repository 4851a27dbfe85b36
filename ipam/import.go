package ipam

import (
	"errors"
	"slices"
)

// Missing returns those of another allocator's leases that Import would take
// over. It only reads; for the error see Import.
func Missing(tx Tx, boot string, leases []Lease) ([]Lease, error) {
	current, err := isOfBoot(tx, boot)
	if err != nil {
		return nil, err
	}
	var missing []Lease
	var refused []error
	for _, lease := range leases {
		done, err := has(tx, importedKey(lease.Owner))
		if err != nil {
			return nil, err
		}
		if done {
			continue
		}
		if current {
			done, err = isKept(tx, lease)
		}
		if err != nil {
			refused = append(refused, err)
		} else if !done {
			missing = append(missing, lease)
		}
	}
	return missing, errors.Join(refused...)
}

// Import takes over leases that another allocator made, and returns them. A lease
// is imported once: that the other allocator still has it when its owner is long
// gone, because it was not told, does not bring it back. It must follow Reclaim
// in the same transaction.
//
// Either all are taken over or, when there is an error, none may be: the
// transaction is to be rolled back. The error joins a *ConflictError for every
// lease that has an address of another owner's.
func Import(tx Tx, boot string, leases []Lease) ([]Lease, error) {
	missing, err := Missing(tx, boot, leases)
	if err != nil {
		return nil, err
	}
	b, err := openBook(tx)
	if err != nil {
		return nil, err
	}
	for _, lease := range missing {
		lease.Boot = boot
		for _, addr := range lease.Addrs {
			if err := b.hold(addr, lease.Owner); err != nil {
				return nil, err
			}
		}
		if err := putLease(tx, lease); err != nil {
			return nil, err
		}
		if err := tx.Put(importedKey(lease.Owner), nil); err != nil {
			return nil, err
		}
	}
	return missing, nil
}

// Imported says that a lease of an owner was imported, in whatever boot and whether or
// not it is still held.
func Imported(tx Tx, owner Owner) (bool, error) { return has(tx, importedKey(owner)) }

// isKept says that the store has the lease already. The error is a *ConflictError
// if it has it otherwise or has one of its addresses for another owner.
func isKept(tx Tx, lease Lease) (bool, error) {
	held, err := Held(tx, lease.Owner)
	if err != nil {
		return false, err
	}
	if len(held.Addrs) > 0 {
		if !slices.Equal(held.Addrs, lease.Addrs) {
			return false, &ConflictError{Lease: lease, Held: held}
		}
		return true, nil
	}
	for _, addr := range lease.Addrs {
		holder, err := get(tx, addrKey(addr))
		if err != nil {
			return false, err
		}
		if holder == nil {
			continue
		}
		other, err := Held(tx, parseOwner(string(holder)))
		if err != nil {
			return false, err
		}
		return false, &ConflictError{Lease: lease, Held: other}
	}
	return false, nil
}

func importedKey(o Owner) []byte { return append([]byte{importedPrefix}, ownerText(o)...) }
