package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Verify reads everything that is of the boot and returns a sentence for each
// thing that contradicts what schema.go says. The error is one of reading.
func Verify(tx Tx, boot string) ([]string, error) {
	current, err := isOfBoot(tx, boot)
	if err != nil || !current {
		return nil, err
	}
	v := &verifier{tx: tx, leased: map[netip.Addr]Owner{}, held: map[netip.Addr]Owner{}}
	for _, step := range []func() error{v.leases, v.holders, v.stocks} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return v.found, nil
}

// verifier reads a store once.
type verifier struct {
	tx     Tx
	leased map[netip.Addr]Owner // by the leases
	held   map[netip.Addr]Owner // by the addresses
	found  []string
}

func (v *verifier) report(format string, args ...any) {
	v.found = append(v.found, fmt.Sprintf(format, args...))
}

func (v *verifier) leases() error {
	return each(v.tx, []byte{leasePrefix}, func(key, text []byte) error {
		owner := parseOwner(string(key[1:]))
		lease, err := parseLease(owner, text)
		if err != nil {
			v.report("%v", err)
			return nil
		}
		for _, addr := range lease.Addrs {
			if other, twice := v.leased[addr]; twice {
				v.report("address %s is in the leases of %s and %s", addr, other, owner)
			}
			v.leased[addr] = owner
		}
		return nil
	})
}

// holders compares the addresses that are held with those of the leases.
func (v *verifier) holders() error {
	err := each(v.tx, []byte{addrPrefix}, func(key, text []byte) error {
		addr, err := parseAddr(key[1:])
		if err != nil {
			v.report("%v", err)
			return nil
		}
		owner := parseOwner(string(text))
		v.held[addr] = owner
		if v.leased[addr] != owner {
			v.report("address %s is held by %s, which has no lease of it", addr, owner)
		}
		return nil
	})
	for _, addr := range slices.SortedFunc(maps.Keys(v.leased), netip.Addr.Compare) {
		if _, held := v.held[addr]; !held {
			v.report("address %s is in the lease of %s and is not held", addr, v.leased[addr])
		}
	}
	return err
}

func (v *verifier) stocks() error {
	return each(v.tx, []byte{stockPrefix}, func(key, text []byte) error {
		s, err := parseStock(key, text)
		if err != nil {
			v.report("%v", err)
			return nil
		}
		freed, err := v.queue(s)
		if err != nil {
			return err
		}
		if err := v.positions(s, freed); err != nil {
			return err
		}
		v.given(s, freed)
		return nil
	})
}

// queue reads the queue of a stock: address → position.
func (v *verifier) queue(s *stock) (map[netip.Addr]int64, error) {
	freed := map[netip.Addr]int64{}
	prefix := idKey(queuePrefix, s.id)
	err := each(v.tx, prefix, func(key, text []byte) error {
		q, err := parseQueued(key[len(prefix):], text)
		if err != nil {
			v.report("%v", err)
			return nil
		}
		if owner, held := v.held[q.addr]; held {
			v.report("address %s is held by %s and is in the queue of range %s-%s", q.addr, owner, s.First, s.Last)
		}
		if !s.canGive(q.addr) {
			v.report("address %s is in the queue of range %s-%s, which cannot give it", q.addr, s.First, s.Last)
		}
		freed[q.addr] = q.position
		return nil
	})
	return freed, err
}

// positions compares the queue of a stock with its inverse.
func (v *verifier) positions(s *stock, freed map[netip.Addr]int64) error {
	n := 0
	prefix := idKey(positionPrefix, s.id)
	err := each(v.tx, prefix, func(key, text []byte) error {
		n++
		addr, err := parseAddr(key[len(prefix):])
		if err != nil {
			v.report("%v", err)
			return nil
		}
		position, err := parsePosition(text)
		if err != nil || position != freed[addr] {
			v.report("address %s is not at its position in the queue of range %s-%s", addr, s.First, s.Last)
		}
		return nil
	})
	if err == nil && n != len(freed) {
		v.report("range %s-%s has %d addresses in its queue and %d positions", s.First, s.Last, len(freed), n)
	}
	return err
}

// given looks for an address before the frontier that is in no state. It stops at
// the first, so that it takes no more steps than the store has rows, whatever a
// spoilt frontier says.
func (v *verifier) given(s *stock, freed map[netip.Addr]int64) {
	for addr := s.First; s.contains(addr) && addr != s.Frontier; addr = addr.Next() {
		_, queued := freed[addr]
		if _, held := v.held[addr]; !held && !queued && s.canGive(addr) {
			v.report("address %s is lost: it is neither held nor in the queue of range %s-%s, and was passed", addr, s.First, s.Last)
			return
		}
	}
}
