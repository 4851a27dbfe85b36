package ipam

import (
	"fmt"
	"testing"
	"time"
)

// TestCoolingAddressesComeLast frees addresses of every kind of stock there is
// and expects the ones that are cooling to be given when nothing else is left.
func TestCoolingAddressesComeLast(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/29"), hosts("10.1.0.0/30")}) // .2 to .6, and .2
	d.cooldown = 30 * time.Second
	for i := range 6 {
		d.mustAllocate(fmt.Sprint("pod", i))
	}
	d.release("pod3") // 10.0.0.5
	d.now = d.now.Add(time.Minute)
	d.release("pod5") // 10.1.0.2
	d.release("pod0") // 10.0.0.2
	d.expect("a", "10.0.0.5/29")
	d.expect("b", "10.1.0.2/30")
	d.expect("c", "10.0.0.2/29")
}

// TestConfigurationThatChangesCoolsNothing gives a range other bounds: what was
// freed a moment ago under the old ones is given last under the new ones.
func TestConfigurationThatChangesCoolsNothing(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/29")})
	d.cooldown = 30 * time.Second
	d.expect("a", "10.0.0.2/29")
	d.release("a")
	d.sets = []Set{{between("10.0.0.0/29", "10.0.0.1", "10.0.0.4")}}
	d.expect("b", "10.0.0.3/29")
	d.sets = []Set{{hosts("10.0.0.0/29")}}
	d.expect("c", "10.0.0.4/29")
	d.release("b")
	d.release("c")
	d.sets = []Set{{between("10.0.0.0/29", "10.0.0.2", "10.0.0.5")}}
	for i, want := range []string{"10.0.0.5/29", "10.0.0.2/29", "10.0.0.3/29", "10.0.0.4/29"} {
		d.expect(fmt.Sprint("last", i), want)
	}
}

// TestStocksOfOldConfigurationsGoWhenTheyHaveCooled is the bound on what cooling
// may keep in the store.
func TestStocksOfOldConfigurationsGoWhenTheyHaveCooled(t *testing.T) {
	d := newDesk(t)
	d.cooldown = 30 * time.Second
	for i := range 100 {
		d.sets = []Set{{hosts(fmt.Sprintf("10.0.%d.0/24", i))}}
		d.mustAllocate("a") // a second each, and another to release
		d.release("a")
	}
	if n := len(d.tx.withPrefix(stockPrefix)); n > 17 {
		t.Errorf("%d stocks are stored, want those of 30 seconds", n)
	}
}

func TestWantedAddressDoesNotWaitForItsCooldown(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")})
	d.cooldown = time.Hour
	d.mustAllocate("a", "10.0.0.9")
	d.release("a")
	if got := d.mustAllocate("b", "10.0.0.9"); got != "10.0.0.9/24" {
		t.Errorf("got %s", got)
	}
}

// TestLargeRangesForget is the bound on the queue of a range that is never used
// up: what was freed within a day.
func TestLargeRangesForget(t *testing.T) {
	d := newDesk(t, Set{hosts("fd00::/64")})
	for range 200 {
		d.mustAllocate("a")
		d.now = d.now.Add(rested / 10)
		d.release("a")
	}
	if n := len(d.tx.withPrefix(queuePrefix)); n > 11 {
		t.Errorf("%d addresses are queued, want those of a day", n)
	}
}
