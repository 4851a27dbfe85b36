package ipam

import (
	"bytes"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"
)

// rowsOf are the pairs of a store, as one text: the length of each part before it, of
// which no part of ours has more than a byte holds.
func rowsOf(m memory) (text []byte) {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		for _, part := range []string{key, m[key]} {
			part = part[:min(len(part), 255)]
			text = append(append(text, byte(len(part))), part...)
		}
	}
	return text
}

// storeOf is the store that a text has.
func storeOf(text []byte) memory {
	m := memory{}
	next := func() (part string) {
		if len(text) > 0 {
			n := min(int(text[0]), len(text)-1)
			part, text = string(text[1:1+n]), text[1+n:]
		}
		return part
	}
	for len(text) > 0 {
		key := next()
		m[key] = next()
	}
	return m
}

// FuzzRows has a store hold what it never wrote. Whatever it is, each question and each
// change ends, in an answer or an error, and what is given is of the ranges.
func FuzzRows(f *testing.F) {
	sets := []Set{{small4, part4}, {top6}}
	m := memory{}
	now := time.Unix(1, 0)
	for i := range byte(5) {
		if err := m.try(func(tx Tx) error {
			_, err := Allocate(tx, sets, Request{Owner: owner(i), Now: now, Pod: "ns/p", Sticky: i%2 == 0})
			return err
		}); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(rowsOf(m))
	if err := errors.Join(Release(m, owner(1), now), Release(m, owner(2), now), Want(m, "pool", now)); err != nil {
		f.Fatal(err)
	}
	f.Add(rowsOf(m))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 2000 { // memory looks at every row for each
			return
		}
		m := storeOf(text)
		boot := m[string(bootKey)]
		for _, ask := range []func(Tx) error{
			func(tx Tx) error { _, err := Leases(tx, boot); return err },
			func(tx Tx) error { _, err := Ranges(tx, boot, now); return err },
			func(tx Tx) error { _, err := Verify(tx, boot); return err },
			func(tx Tx) error { _, err := Grants(tx, boot); return err },
			func(tx Tx) error { _, err := PoolSets(tx, boot, []string{"pool"}); return err },
			func(tx Tx) error { _, err := Wanted(tx); return err },
			func(tx Tx) error { return Ready(tx, boot, sets, now) },
			func(tx Tx) error { return CheckLost(tx, boot, []string{"pool"}) },
		} {
			before := rowsOf(m)
			_ = ask(m)
			if !bytes.Equal(before, rowsOf(m)) {
				t.Fatal("a question changed the store")
			}
		}
		_ = m.try(func(tx Tx) error {
			given, err := Allocate(tx, sets, Request{Owner: owner(9), Now: now})
			for i, a := range given {
				if err == nil && sets[i].index(a.Prefix.Addr()) < 0 {
					t.Errorf("address %s was given, which is of no range of %s", a.Prefix, sets[i])
				}
			}
			return err
		})
		for i := range byte(10) {
			_ = m.try(func(tx Tx) error { return Release(tx, owner(i), now) })
		}
		if err := m.try(func(tx Tx) error { return Reclaim(tx, boot+"'") }); err != nil {
			t.Fatalf("what is of another boot cannot be forgotten: %v", err)
		}
	})
}
