package ipam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Tx is one transaction on an ordered map of byte strings: all of its changes
// happen or none does, and nobody else changes the map meanwhile. What Seek
// returns belongs to the caller.
type Tx interface {
	// Seek returns the first pair whose key is key or comes after it; a nil k
	// says that there is none.
	Seek(key []byte) (k, v []byte, err error)
	Put(key, value []byte) error
	// Delete removes a key; an absent one is no error.
	Delete(key []byte) error
}

// Schema is the version of what follows. A store of another version is not for
// this package.
const Schema = 1

// The map's keys; numbers are big-endian, so that they sort as they count.
//
//	b                        → the boot that everything below is of
//	l CONTAINER NUL IFNAME   → Lease, as JSON
//	a ADDR                   → CONTAINER NUL IFNAME of the lease that has ADDR
//	r ID                     → stock, as JSON: what a range has left
//	q ID POSITION            → ADDR    freed addresses of a range, longest freed first
//	p ID ADDR                → POSITION of ADDR in that queue
//	s POD NUL IFNAME         → former, as JSON: what a sticky pod had
//	t FREED POD NUL IFNAME   → nothing: those pods, the one that went first first
//	i CONTAINER NUL IFNAME   → nothing: a lease that was imported, in whatever boot
//	g POOL NUL ADDR          → Grant, as JSON: a block that this node has, which begins at ADDR
//	n POOL NUL               → PoolState, as JSON, in whatever boot
//	w POOL NUL               → when the pool was last wanted, as RFC 3339, in whatever boot
//
// ADDR is the number of bits of the family, in one byte, and the address; ID has
// four bytes, POSITION and FREED have eight. Every address of a stock is in one of three
// states: held (it has an a key), freed (a q and a p key), or never given (none).
const (
	leasePrefix    = 'l'
	addrPrefix     = 'a'
	stockPrefix    = 'r'
	queuePrefix    = 'q'
	positionPrefix = 'p'
	formerPrefix   = 's'
	expiryPrefix   = 't'
	importedPrefix = 'i'
	grantPrefix    = 'g'
	statePrefix    = 'n'
	wantPrefix     = 'w'
)

var (
	bootKey = []byte{'b'}
	// ofBoot are the prefixes of what does not outlive a boot.
	ofBoot = []byte{leasePrefix, addrPrefix, stockPrefix, queuePrefix, positionPrefix, formerPrefix, expiryPrefix, grantPrefix}
)

func ownerText(o Owner) string { return o.ContainerID + "\x00" + o.IfName }

func parseOwner(text string) Owner {
	id, ifName, _ := strings.Cut(text, "\x00")
	return Owner{ContainerID: id, IfName: ifName}
}

func leaseKey(o Owner) []byte { return append([]byte{leasePrefix}, ownerText(o)...) }

func addrKey(addr netip.Addr) []byte { return appendAddr([]byte{addrPrefix}, addr) }

func appendAddr(key []byte, addr netip.Addr) []byte {
	return append(append(key, byte(addr.BitLen())), addr.AsSlice()...)
}

func parseAddr(text []byte) (netip.Addr, error) {
	if len(text) > 0 {
		if addr, ok := netip.AddrFromSlice(text[1:]); ok {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("decode address % x: not one byte of family and an address", text)
}

// idKey begins every key that belongs to one stock.
func idKey(prefix byte, id uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefix}, id)
}

// each calls f with every pair whose key begins with prefix, in order; f may
// delete the pair.
func each(tx Tx, prefix []byte, f func(k, v []byte) error) error {
	return eachFrom(tx, prefix, prefix, f)
}

// eachFrom is each, beginning at key.
func eachFrom(tx Tx, key, prefix []byte, f func(k, v []byte) error) error {
	for {
		k, v, err := tx.Seek(key)
		if err != nil || !bytes.HasPrefix(k, prefix) {
			return err
		}
		if bytes.Compare(k, key) < 0 { // a damaged store: this would never end
			return fmt.Errorf("find key % x: the one found is % x, which is before it", key, k)
		}
		key = append(bytes.Clone(k), 0) // the least key after k
		if err := f(k, v); err != nil {
			return err
		}
	}
}

// isOfBoot says that what the store has is of the boot.
func isOfBoot(tx Tx, boot string) (bool, error) {
	stored, err := get(tx, bootKey)
	return string(stored) == boot, err
}

// get returns the value of a key, nil when it is absent.
func get(tx Tx, key []byte) ([]byte, error) {
	k, v, err := tx.Seek(key)
	if err != nil || !bytes.Equal(k, key) {
		return nil, err
	}
	return v, nil
}

func has(tx Tx, key []byte) (bool, error) {
	k, _, err := tx.Seek(key)
	return bytes.Equal(k, key), err
}

// deleteAll removes every key that begins with prefix.
func deleteAll(tx Tx, prefix []byte) error {
	return each(tx, prefix, func(k, _ []byte) error { return tx.Delete(k) })
}
