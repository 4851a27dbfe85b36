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
	exhausted, err := firstExhausted(tx, sets, now)
	if err != nil || exhausted == nil {
		return err
	}
	var reserved *ReservedError
	if err := checkReserved(tx, sets); errors.As(err, &reserved) {
		return fmt.Errorf("%w; %w", exhausted, reserved)
	} else if err != nil {
		return err
	}
	return exhausted
}

// firstExhausted is the first set of which nothing is left, nil if there is none.
func firstExhausted(tx Tx, sets []Set, now time.Time) (*ExhaustedError, error) {
	b, err := openBook(tx)
	if err != nil {
		return nil, err
	}
	for i, stocks := range b.match(sets) {
		addr, err := b.choose(stocks, now)
		if err != nil {
			return nil, err
		}
		if !addr.IsValid() {
			return &ExhaustedError{Set: sets[i]}, nil
		}
	}
	return nil, nil
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
