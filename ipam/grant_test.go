package ipam

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func grantOf(block string) Grant {
	p := netip.MustParsePrefix(block)
	lan := netip.MustParsePrefix("10.0.0.0/24")
	return Grant{Block: p, Range: Range{Subnet: lan, First: p.Addr(), Last: LastAddr(p), Gateway: netip.MustParseAddr("10.0.0.1"), Pool: "lan"}}
}

// A network gives addresses of the blocks that it was granted, and nothing of one
// that was withdrawn, which needs that nobody holds or just held any of it.
func TestGrants(t *testing.T) {
	tx, now := memory{}, time.Unix(1000, 0)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	add := func(id string) (string, error) {
		var got string
		err := tx.try(func(tx Tx) error {
			sets, err := PoolSets(tx, "1", []string{"lan"})
			if err != nil {
				return err
			}
			given, err := Allocate(tx, sets, Request{Owner: Owner{id, "eth0"}, Boot: "1", Now: now, Cooldown: 30 * time.Second})
			for _, a := range given {
				got += a.Prefix.String()
			}
			return err
		})
		return got, err
	}
	must(Reclaim(tx, "1"))
	var none *NoBlockError
	if _, err := add("a"); !errors.As(err, &none) || err.Error() != "this node has no block of pool lan yet: 'fairlead node' leases one" {
		t.Errorf("without a block: %v", err)
	}
	must(PutState(tx, "lan", PoolState{Note: "all 4 blocks of the pool are leased"}))
	if _, err := add("a"); err.Error() != "this node has no block of pool lan: all 4 blocks of the pool are leased" {
		t.Errorf("with a note: %v", err)
	}
	must(PutGrant(tx, grantOf("10.0.0.0/30")))
	must(PutGrant(tx, grantOf("10.0.0.8/30")))
	if err := PutGrant(tx, grantOf("10.0.0.8/29")); err == nil {
		t.Error("a block that overlaps another was granted")
	}
	for _, want := range []string{"10.0.0.2/24", "10.0.0.3/24", "10.0.0.8/24"} {
		got, err := add(want)
		must(err)
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if err := Withdraw(tx, grantOf("10.0.0.8/30"), now); !errors.Is(err, ErrInUse) {
		t.Errorf("withdrawn while held: %v", err)
	}
	must(Release(tx, Owner{"10.0.0.8/24", "eth0"}, now))
	if err := Withdraw(tx, grantOf("10.0.0.8/30"), now.Add(29*time.Second)); !errors.Is(err, ErrInUse) {
		t.Errorf("withdrawn while cooling: %v", err)
	}
	u, err := UsageOf(tx, grantOf("10.0.0.0/30"), now)
	must(err)
	if diff := cmp.Diff(BlockUsage{Size: 2, Used: 2}, u); diff != "" {
		t.Errorf("usage: -want +got\n%s", diff)
	}
	must(Withdraw(tx, grantOf("10.0.0.8/30"), now.Add(31*time.Second)))
	if _, err := add("d"); err == nil || err.Error() != "no addresses left in the blocks of pool lan that this node has, 10.0.0.0-10.0.0.3: all 4 blocks of the pool are leased" {
		t.Errorf("after the block went: %v", err)
	}
	lost := grantOf("10.0.0.0/30")
	lost.Closed = Lost
	must(PutGrant(tx, lost))
	var l *LostError
	if err := CheckLost(tx, "1", []string{"lan"}); !errors.As(err, &l) {
		t.Errorf("a lost block: %v", err)
	}
	must(Reclaim(tx, "2"))
	if grants, err := Grants(tx, "2"); err != nil || len(grants) > 0 {
		t.Errorf("after a reboot: %v, error %v", grants, err)
	}
}

func TestWanted(t *testing.T) {
	tx, now := memory{}, time.Unix(1000, 0).UTC()
	for _, at := range []time.Time{now, now.Add(time.Minute), now.Add(2 * time.Hour)} {
		if err := Want(tx, "lan", at); err != nil {
			t.Fatal(err)
		}
		if err := Want(tx, "lan-2", at); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Wanted(tx)
	want := map[string]time.Time{"lan": now.Add(2 * time.Hour), "lan-2": now.Add(2 * time.Hour)}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("error %v, -want +got\n%s", err, diff)
	}
}
