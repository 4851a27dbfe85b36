package takeover

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/ipam"
)

// What host-local has is compared with what is held here: "stays" and "moved" were
// imported, "new" was made here, with an address that "moved" had before.
func TestCompare(t *testing.T) {
	theirs := Rows{
		Leases: []ipam.Lease{
			lease("stays", "eth0", "10.1.0.2", "fd00::2"),
			lease("moved", "eth0", "10.1.0.3", "fd00::3"),
			lease("late", "eth0", "10.1.0.9"),
		},
		Unowned: []netip.Addr{netip.MustParseAddr("10.1.0.8")},
	}
	imported := func(o ipam.Owner) bool { return slices.Contains([]string{"stays", "moved"}, o.ContainerID) }
	got, err := Compare(theirs, []ipam.Lease{
		lease("stays", "eth0", "10.1.0.2", "fd00::2"),
		lease("new", "eth0", "10.1.0.3", "fd00::7"),
		lease("new", "net1", "10.1.0.8"),
	}, imported)
	if err != nil {
		t.Error(err)
	}
	want := Change{
		Hold: []ipam.Lease{lease("new", "eth0", "10.1.0.3", "fd00::7"), lease("new", "net1", "10.1.0.8")},
		Free: []ipam.Lease{lease("moved", "eth0", "fd00::3")},
		Kept: []ipam.Lease{lease("late", "eth0", "10.1.0.9")},
	}
	if diff := cmp.Diff(want, got, sameAddrs); diff != "" {
		t.Errorf("change: -want +got\n%s", diff)
	}
	_, err = Compare(theirs, []ipam.Lease{lease("new", "eth0", "10.1.0.9")}, imported)
	if want := "10.1.0.9 is held by container new interface eth0 here, and by container late interface eth0 in host-local"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// host-local itself takes what it was told: it gives other addresses, and frees those of
// a pod that it did not make.
func TestApply(t *testing.T) {
	dir := t.TempDir()
	d, err := Make(t.Context(), dir, "pods")
	if err != nil {
		t.Fatal(err)
	}
	err = d.Apply(Change{Hold: []ipam.Lease{lease("ours", "eth0", "10.1.0.2", "fd00::2"), lease("gone", "eth0", "10.1.0.3")}})
	if err != nil {
		t.Fatal(err)
	}
	gone := Change{Free: []ipam.Lease{lease("gone", "eth0", "10.1.0.3")}}
	for range 2 {
		if err := d.Apply(gone); err != nil {
			t.Error(err)
		}
	}
	d.Close()
	hostLocal(t, dir, "ADD", "theirs", "eth0")
	want := []ipam.Lease{lease("ours", "eth0", "10.1.0.2", "fd00::2"), lease("theirs", "eth0", "10.1.0.3", "fd00::3")}
	wantLeases(t, dir, want)
	hostLocal(t, dir, "DEL", "ours", "eth0")
	wantLeases(t, dir, want[1:])
}

func wantLeases(t *testing.T, dir string, want []ipam.Lease) {
	t.Helper()
	got, err := read(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Leases, sameAddrs, cmpopts.IgnoreFields(ipam.Lease{}, "Since")); diff != "" {
		t.Errorf("host-local has: -want +got\n%s", diff)
	}
}

func TestMakeNeedsADirectory(t *testing.T) {
	if _, err := Make(t.Context(), "/dev/null", "pods"); err == nil || !strings.HasPrefix(err.Error(), "make host-local's network: ") {
		t.Errorf("error %v", err)
	}
}
