package ipam

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Ready says whether Allocate would find an address of each set in this boot. It
// only reads. The error is a *ReservedError where a pod holds an address that the
// sets reserve, else an *ExhaustedError where nothing is left.
func Ready(tx Tx, boot string, sets []Set, now time.Time) error {
	current, err := isOfBoot(tx, boot)
	if err != nil || !current {
		return err
	}
	if err := checkReserved(tx, sets); err != nil {
		return err
	}
	b, err := openBook(tx)
	if err != nil {
		return err
	}
	for i, stocks := range b.match(sets) {
		addr, err := b.choose(stocks, now)
		if err != nil {
			return err
		}
		if !addr.IsValid() {
			return &ExhaustedError{Set: sets[i]}
		}
	}
	return nil
}

func checkReserved(tx Tx, sets []Set) error {
	what := reserved(sets)
	for _, addr := range slices.SortedFunc(maps.Keys(what), netip.Addr.Compare) {
		holder, err := get(tx, addrKey(addr))
		if err != nil {
			return err
		}
		if holder != nil {
			return &ReservedError{Addr: addr, What: what[addr], Owner: parseOwner(string(holder))}
		}
	}
	return nil
}
