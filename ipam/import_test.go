package ipam

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func imported(id string, texts ...string) Lease {
	return Lease{Owner: Owner{id, "eth0"}, Addrs: addrs(texts...), Since: time.Unix(7, 0).UTC()}
}

// doImport returns the containers whose leases were taken over.
func (d *desk) doImport(leases ...Lease) (ids []string, err error) {
	d.t.Helper()
	var missing []Lease
	if missing, err = Missing(readOnly{d.tx}, "", leases); err == nil {
		err = d.tx.try(func(tx Tx) error {
			taken, err := Import(tx, "", leases)
			if diff := cmp.Diff(missing, taken, sameAddrs); diff != "" {
				d.t.Errorf("Missing and Import differ: -missing +import\n%s", diff)
			}
			return err
		})
	}
	d.tx.verify(d.t)
	for _, lease := range missing {
		ids = append(ids, lease.ContainerID)
	}
	return ids, err
}

func (d *desk) mustImport(leases ...Lease) string {
	d.t.Helper()
	ids, err := d.doImport(leases...)
	if err != nil {
		d.t.Fatal(err)
	}
	return fmt.Sprint(ids)
}

func TestImportedAddressesAreNotGiven(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/29")}, Set{hosts("fd00::/64")})
	if got := d.mustImport(imported("x", "10.0.0.2", "fd00::2"), imported("y", "10.0.0.4", "fd00::3")); got != "[x y]" {
		t.Errorf("imported %s", got)
	}
	d.expect("a", "10.0.0.3/29 fd00::4/64")
	d.expect("b", "10.0.0.5/29 fd00::5/64")
	d.release("x")
	d.expect("c", "10.0.0.6/29 fd00::6/64")
	d.expect("d", "10.0.0.2/29 fd00::7/64")
	want := imported("y", "10.0.0.4", "fd00::3")
	got, err := Held(d.tx, want.Owner)
	if diff := cmp.Diff(want, got, sameAddrs); diff != "" || err != nil {
		t.Errorf("lease: %v, -want +got\n%s", err, diff)
	}
}

func TestImportTakesAddressesThatWereFreed(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/30")})
	d.mustAllocate("a")
	d.release("a")
	d.mustImport(imported("x", "10.0.0.2"))
	if _, err := d.allocate("b"); err == nil {
		t.Error("an imported address was given")
	}
}

func TestImportIsDoneOnce(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/30")})
	x, y := imported("x", "10.0.0.2"), imported("y", "10.9.0.7")
	d.mustImport(x)
	if got := d.mustImport(x, y); got != "[y]" {
		t.Errorf("the second time: imported %s", got)
	}
	d.release("x")
	if got := d.mustImport(x, y); got != "[]" {
		t.Errorf("when x was gone: imported %s", got)
	}
	d.expect("a", "10.0.0.2/30")
	if got := d.mustImport(x, y); got != "[]" {
		t.Errorf("when another had the address: imported %s", got)
	}
	if err := Reclaim(d.tx, "another boot"); err != nil {
		t.Fatal(err)
	}
	missing, err := Missing(d.tx, "another boot", []Lease{x, y})
	if len(missing) > 0 || err != nil {
		t.Errorf("after a reboot: %v and error %v", missing, err)
	}
}

func TestImportOfWhatIsHeldAlready(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")})
	d.mustAllocate("a")
	if got := d.mustImport(imported("a", "10.0.0.2"), imported("b", "10.0.0.3")); got != "[b]" {
		t.Errorf("imported %s", got)
	}
}

func TestImportRefusesConflicts(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")}, Set{hosts("fd00::/64")})
	d.mustAllocate("a")
	d.mustAllocate("b")
	before := fmt.Sprint(d.tx)
	_, err := d.doImport(imported("x", "10.0.0.77"), imported("y", "10.0.0.78", "fd00::2"), imported("b", "10.0.0.9"))
	want := "[10.0.0.78 fd00::2] of container y interface eth0: container a interface eth0 holds [10.0.0.2 fd00::2]\n" +
		"[10.0.0.9] of container b interface eth0: container b interface eth0 holds [10.0.0.3 fd00::3]"
	if text(err) != want {
		t.Errorf("got error %v\nwant %s", err, want)
	}
	if err := d.tx.try(func(tx Tx) error { _, err := Import(tx, "", []Lease{imported("y", "fd00::2")}); return err }); err == nil {
		t.Error("Import took an address that is held")
	}
	if after := fmt.Sprint(d.tx); after != before {
		t.Errorf("the store changed from\n%q to\n%q", before, after)
	}
}
