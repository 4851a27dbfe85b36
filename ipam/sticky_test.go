package ipam

import (
	"fmt"
	"testing"
	"time"
)

// as lets the desk's next requests be of a sticky pod.
func (d *desk) as(pod string) *desk {
	d.pod, d.sticky = pod, true
	return d
}

func TestStickyPodGetsItsAddressesBack(t *testing.T) {
	both := []Set{{hosts("10.0.0.0/29")}, {hosts("fd00::/64")}}
	const first = "10.0.0.2/29 fd00::2/64"
	for _, tt := range []struct {
		name    string
		between func(d *desk)
		want    string
	}{
		{"at once", func(*desk) {}, first},
		{"after others came", func(d *desk) { d.as("shop/other").mustAllocate("other") }, first},
		{"almost a day later", func(d *desk) { d.now = d.now.Add(StickyFor - 10*time.Second) }, first},
		{"while one of them is held", func(d *desk) { d.as("").mustAllocate("other", "10.0.0.2") }, "10.0.0.3/29 fd00::2/64"},
		{"after another had one of them", func(d *desk) {
			d.as("").mustAllocate("other", "fd00::2")
			d.release("other")
		}, "10.0.0.2/29 fd00::3/64"},
		{"after others went round", func(d *desk) {
			for i := range 5 {
				d.as("").mustAllocate(fmt.Sprint("other", i))
			}
			for i := range 5 {
				d.release(fmt.Sprint("other", i))
			}
		}, "10.0.0.3/29 fd00::2/64"},
		{"in a range that was changed", func(d *desk) { d.sets[0] = Set{hosts("10.0.0.0/28")} }, "10.0.0.2/28 fd00::2/64"},
		{"after another had it in a range that was changed", func(d *desk) {
			d.cooldown = time.Hour
			d.sets[0] = Set{hosts("10.0.0.0/28")}
			d.as("").mustAllocate("other", "10.0.0.2")
			d.release("other")
			d.sets[0] = Set{hosts("10.0.0.0/29")}
		}, "10.0.0.3/29 fd00::2/64"},
		{"in a range without it", func(d *desk) { d.sets[0] = Set{hosts("10.9.0.0/29")} }, "10.9.0.2/29 fd00::2/64"},
		{"that became the gateway", func(d *desk) { d.sets[0][0].Gateway = addrs("10.0.0.2")[0] }, "10.0.0.1/29 fd00::2/64"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, Set{both[0][0]}, Set{both[1][0]})
			d.as("shop/cart-0").mustAllocate("a")
			d.release("a")
			tt.between(d)
			d.as("shop/cart-0").expect("b", tt.want)
		})
	}
}

func TestStickyIsOfOnePodAndInterface(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")})
	d.as("shop/cart-0").mustAllocate("a")
	d.release("a")
	d.as("shop/cart-1").expect("b", "10.0.0.3/24")
	d.sticky = false
	d.pod = "shop/cart-0"
	d.expect("c", "10.0.0.4/24") // the network is not sticky any more
	d.release("c")
	d.as("shop/cart-0").expect("d", "10.0.0.2/24")
}

func TestStickyGivesWayToTheAddressWanted(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")}, Set{hosts("fd00::/64")})
	d.as("shop/cart-0").mustAllocate("a")
	d.release("a")
	if got, want := d.mustAllocate("b", "10.0.0.9"), "10.0.0.9/24 fd00::2/64"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestTwoPodsOfOneName is a pod that is made anew before the old one is gone: the
// address that was freed last is the one that is remembered.
func TestTwoPodsOfOneName(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")})
	d.as("shop/cart-0").expect("old", "10.0.0.2/24")
	d.expect("new", "10.0.0.3/24")
	d.release("old")
	d.release("new")
	d.expect("newer", "10.0.0.3/24")
}

func TestStickyEndsAfterADay(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")})
	d.expect("first", "10.0.0.2/24")
	d.as("shop/cart-0").expect("a", "10.0.0.3/24")
	d.release("first")
	d.release("a")
	d.now = d.now.Add(StickyFor)
	d.expect("b", "10.0.0.2/24") // the one freed longest ago
}

// TestFewPodsAreRemembered is the bound on what is remembered: the pods that went
// within a day.
func TestFewPodsAreRemembered(t *testing.T) {
	d := newDesk(t, Set{hosts("fd00::/64")})
	for i := range 100 {
		d.as(fmt.Sprint("job/", i)).mustAllocate("a")
		d.now = d.now.Add(StickyFor / 10)
		d.release("a")
	}
	if n := len(d.tx.withPrefix(formerPrefix)); n > 11 {
		t.Errorf("%d pods are remembered, want those of a day", n)
	}
}

func TestRebootForgetsPods(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")})
	d.as("shop/cart-0").mustAllocate("a")
	d.release("a")
	if err := Reclaim(d.tx, "another boot"); err != nil {
		t.Fatal(err)
	}
	if n := len(d.tx.withPrefix(formerPrefix)) + len(d.tx.withPrefix(expiryPrefix)); n > 0 {
		t.Errorf("%d keys are left", n)
	}
}
