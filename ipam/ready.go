package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Ready says whether Allocate would find an address of each set in this boot. It
// only reads. The error wraps an *ExhaustedError where nothing is left, and besides
// a *ReservedError where a pod holds an address that the sets reserve.
func Ready(tx Tx, boot string, sets []Set, now time.Time) error {
	current, err := isOfBoot(tx, boot)
	if err != nil || !current {
		return err
	}
	err = firstExhausted(tx, sets, now)
	var none *ExhaustedError
	if !errors.As(err, &none) {
		return err
	}
	var reserved *ReservedError
	if err := checkReserved(tx, sets); errors.As(err, &reserved) {
		return fmt.Errorf("%w; %w", none, reserved)
	} else if err != nil {
		return err
	}
	return none
}

// firstExhausted reports the first set of which nothing is left, as an
// *ExhaustedError.
func firstExhausted(tx Tx, sets []Set, now time.Time) error {
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
			return exhausted(tx, sets[i])
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
