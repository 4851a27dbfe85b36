package disk

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/ipam"
)

// TestPowerLoss makes what a disk can be left with when power fails in a
// transaction. Of what was written and not yet synced a disk has kept any pages,
// and bbolt syncs all others before it writes the meta page that makes them
// count. So until that page is there the disk has the old one and any of the new
// pages; that must be the store before the transaction, and with that page it is
// the store after it.
func TestPowerLoss(t *testing.T) {
	random := rand.New(rand.NewPCG(2026, 11))
	s := newStore(t, t.TempDir())
	mustAdd(t, s, owner("first"))
	holds := map[string]netip.Addr{}
	for i := range 150 {
		before, held := contents(t, s.path), maps.Clone(holds)
		changeSomething(t, s, random, holds, i)
		after := contents(t, s.path)
		for range 3 {
			wantHeld(t, torn(before, after, random), held, fmt.Sprintf("power lost in transaction %d", i))
		}
		wantHeld(t, after, holds, fmt.Sprintf("power lost after transaction %d", i))
		if t.Failed() {
			return
		}
	}
}

// changeSomething adds or deletes some owners in one transaction, so that a
// transaction has few pages or many.
func changeSomething(t *testing.T, s *Store, random *rand.Rand, holds map[string]netip.Addr, round int) {
	t.Helper()
	var names []string
	for name := range holds {
		names = append(names, name)
	}
	err := s.Update(t.Context(), func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, "boot"); err != nil {
			return err
		}
		for i := range 1 + random.IntN(40) {
			if i < len(names) && random.IntN(2) == 0 {
				delete(holds, names[i])
				if err := ipam.Release(tx, owner(names[i]), fixed); err != nil {
					return err
				}
				continue
			}
			name := fmt.Sprintf("pod-%d-%d", round, i)
			given, err := ipam.Allocate(tx, net4, ipam.Request{Owner: owner(name), Boot: "boot", Now: fixed})
			if err != nil {
				return err
			}
			holds[name] = given[0].Prefix.Addr()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// torn is a disk that has the meta pages of before, the first two, and some of the
// other pages of after.
func torn(before, after []byte, random *rand.Rand) []byte {
	page := os.Getpagesize()
	disk := bytes.Clone(before)
	// The file grows before anything is written to it, or has not yet.
	if random.IntN(2) == 0 {
		disk = append(disk, make([]byte, max(0, len(after)-len(disk)))...)
	}
	for at := 2 * page; at < min(len(disk), len(after)); at += page {
		if random.IntN(2) == 0 {
			copy(disk[at:at+page], after[at:at+page])
		}
	}
	return disk
}

// wantHeld opens a disk as the node does when it is up again and looks at every
// row and every page.
func wantHeld(t *testing.T, disk []byte, want map[string]netip.Addr, when string) {
	t.Helper()
	s := newStore(t, t.TempDir())
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	got := map[string]netip.Addr{}
	err := s.View(t.Context(), func(tx ipam.Tx) error {
		leases, err := ipam.Leases(tx, "boot")
		for _, lease := range leases {
			if lease.Owner != owner("first") {
				got[lease.ContainerID] = lease.Addrs[0]
			}
		}
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s: %d owners hold addresses, %d should, or other ones", when, len(got), len(want))
	}
	found, err := s.Check(t.Context())
	if err != nil || len(found) > 0 {
		t.Errorf("%s: %v %v", when, found, err)
	}
	if _, err := add(t.Context(), s, net4, owner("afterwards")); err != nil {
		t.Errorf("%s, an ADD: %v", when, err)
	}
}
