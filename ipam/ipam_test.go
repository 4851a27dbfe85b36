package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// hosts is a range of all hosts of a subnet, with its first one as the gateway.
func hosts(subnet string) Range {
	p := netip.MustParsePrefix(subnet)
	return Range{Subnet: p, First: p.Addr().Next(), Last: LastHost(p), Gateway: p.Addr().Next()}
}

// between is hosts, from first to last only.
func between(subnet, first, last string) Range {
	r := hosts(subnet)
	r.First, r.Last = netip.MustParseAddr(first), netip.MustParseAddr(last)
	return r
}

func TestRangeString(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  Set
		want string
	}{
		{"all hosts", Set{hosts("10.244.1.0/24")}, "10.244.1.0/24"},
		{"all addresses", Set{between("10.244.1.0/24", "10.244.1.0", "10.244.1.255")}, "10.244.1.0/24"},
		{"from the second host", Set{between("10.244.1.0/24", "10.244.1.2", "10.244.1.254")}, "10.244.1.2-10.244.1.254"},
		{"to the last host but one", Set{between("10.244.1.0/24", "10.244.1.1", "10.244.1.253")}, "10.244.1.1-10.244.1.253"},
		{"all of IPv6", Set{hosts("fd00::/64")}, "fd00::/64"},
		{"several", Set{hosts("10.1.0.0/16"), between("10.2.0.0/16", "10.2.0.9", "10.2.0.9")}, "10.1.0.0/16, 10.2.0.9-10.2.0.9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.set.String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLastHost(t *testing.T) {
	for subnet, want := range map[string]string{
		"10.1.2.0/24":   "10.1.2.254",
		"10.1.2.128/29": "10.1.2.134",
		"10.0.0.0/9":    "10.127.255.254",
		"fd00::/64":     "fd00::ffff:ffff:ffff:ffff",
		"fd00::80/122":  "fd00::bf",
		"8000::/1":      "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		if got := LastHost(netip.MustParsePrefix(subnet)).String(); got != want {
			t.Errorf("last host of %s: got %s, want %s", subnet, got, want)
		}
	}
}

func TestOverlaps(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b Range
		want bool
	}{
		{"side by side", between("10.0.0.0/24", "10.0.0.1", "10.0.0.9"), between("10.0.0.0/24", "10.0.0.10", "10.0.0.20"), false},
		{"by one address", between("10.0.0.0/24", "10.0.0.1", "10.0.0.10"), between("10.0.0.0/24", "10.0.0.10", "10.0.0.20"), true},
		{"one inside the other", hosts("10.0.0.0/16"), hosts("10.0.7.0/24"), true},
		{"of two families", hosts("10.0.0.0/16"), hosts("::/1"), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.a.Overlaps(tt.b); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
			if got := tt.b.Overlaps(tt.a); got != tt.want {
				t.Errorf("the other way: got %t, want %t", got, tt.want)
			}
		})
	}
}

// desk is an allocator for one configuration, whose clock moves on by itself.
type desk struct {
	t    *testing.T
	tx   memory
	sets []Set
	now  time.Time

	cooldown time.Duration
	pod      string
	sticky   bool
}

func newDesk(t *testing.T, sets ...Set) *desk {
	return &desk{t: t, tx: memory{}, sets: sets, now: time.Unix(1_700_000_000, 0)}
}

func (d *desk) allocate(id string, wanted ...string) (string, error) {
	d.t.Helper()
	d.now = d.now.Add(time.Second)
	var given []Address
	err := d.tx.try(func(tx Tx) (err error) {
		given, err = Allocate(tx, d.sets, Request{
			Owner: Owner{id, "eth0"}, Wanted: addrs(wanted...), Now: d.now,
			Cooldown: d.cooldown, Pod: d.pod, Sticky: d.sticky,
		})
		return err
	})
	d.tx.verify(d.t)
	text := ""
	for i, a := range given {
		if i > 0 {
			text += " "
		}
		text += a.Prefix.String()
	}
	return text, err
}

func (d *desk) mustAllocate(id string, wanted ...string) string {
	d.t.Helper()
	text, err := d.allocate(id, wanted...)
	if err != nil {
		d.t.Fatal(err)
	}
	return text
}

func (d *desk) release(id string) {
	d.t.Helper()
	d.now = d.now.Add(time.Second)
	if err := Release(d.tx, Owner{id, "eth0"}, d.now); err != nil {
		d.t.Fatal(err)
	}
	d.tx.verify(d.t)
}

func (d *desk) expect(id, want string) {
	d.t.Helper()
	if got := d.mustAllocate(id); got != want {
		d.t.Fatalf("%s got %s, want %s", id, got, want)
	}
}

func TestAddressesAreReusedAsLateAsPossible(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/29")}) // .1 is the gateway, .2 to .6 are given
	d.expect("a", "10.0.0.2/29")
	d.release("a")
	d.expect("b", "10.0.0.3/29")
	d.mustAllocate("wanted", "10.0.0.4")
	d.release("wanted")
	d.expect("c", "10.0.0.5/29") // .4 was in use a moment ago
	d.release("b")
	d.expect("d", "10.0.0.6/29")
	d.expect("e", "10.0.0.2/29")
	d.expect("f", "10.0.0.4/29")
	d.expect("g", "10.0.0.3/29")
}

func TestOrderOfReuseDoesNotDependOnTheClock(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/30")}, Set{hosts("10.9.0.0/29")})
	for i := range 4 {
		id := fmt.Sprint("pod", i)
		d.expect(id, fmt.Sprintf("10.0.0.2/30 10.9.0.%d/29", 2+i))
		d.now = d.now.Add(-time.Hour)
		d.release(id)
	}
	d.expect("x", "10.0.0.2/30 10.9.0.6/29")
	d.release("x")
	d.expect("y", "10.0.0.2/30 10.9.0.2/29")
}

func TestSetGivesFromAllItsRanges(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/30"), hosts("10.1.0.0/30")})
	d.expect("a", "10.0.0.2/30")
	d.expect("b", "10.1.0.2/30")
	d.release("b")
	d.release("a")
	d.expect("c", "10.1.0.2/30") // freed before the other one
}

func TestAllocateErrors(t *testing.T) {
	sets := []Set{{hosts("10.0.0.0/30"), between("10.1.0.0/24", "10.1.0.0", "10.1.0.255")}, {between("fd00::/64", "fd00::", "fd00::9")}}
	for _, tt := range []struct {
		name   string
		id     string
		wanted []string
		want   string
	}{
		{"second allocation", "first", nil, "container first interface eth0 holds addresses already: [10.0.0.2 fd00::2]"},
		{"held", "x", []string{"10.0.0.2"}, "address 10.0.0.2 is held by container first interface eth0"},
		{"gateway", "x", []string{"10.0.0.1"}, "address 10.0.0.1 cannot be given: it is the gateway of 10.0.0.0/30"},
		{"network", "x", []string{"10.1.0.0"}, "address 10.1.0.0 cannot be given: it is the network address of 10.1.0.0/24"},
		{"broadcast", "x", []string{"10.1.0.255"}, "address 10.1.0.255 cannot be given: it is the broadcast address of 10.1.0.0/24"},
		{"anycast", "x", []string{"fd00::"}, "address fd00:: cannot be given: it is the subnet-router anycast address of fd00::/64"},
		{"foreign", "x", []string{"10.2.0.1"}, "address 10.2.0.1 cannot be given: it is in no range"},
		{"in the subnet, not in the range", "x", []string{"fd00::a"}, "address fd00::a cannot be given: it is in no range"},
		{
			"two of one set", "x", []string{"10.1.0.7", "fd00::7", "10.1.0.8"},
			"address 10.1.0.8 cannot be given: one address is given of 10.0.0.0/30, 10.1.0.0/24, and 10.1.0.7 is requested too",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDesk(t, sets...)
			d.mustAllocate("first")
			before := fmt.Sprint(d.tx)
			got, err := d.allocate(tt.id, tt.wanted...)
			if err == nil || err.Error() != tt.want {
				t.Fatalf("got %s and error %v, want error %s", got, err, tt.want)
			}
			if after := fmt.Sprint(d.tx); after != before {
				t.Errorf("the store changed from\n%q to\n%q", before, after)
			}
		})
	}
}

func TestWantedAddresses(t *testing.T) {
	d := newDesk(t, Set{hosts("10.0.0.0/24")}, Set{hosts("fd00::/64")})
	for _, tt := range []struct {
		id     string
		wanted []string
		want   string
	}{
		{"one", []string{"10.0.0.77"}, "10.0.0.77/24 fd00::2/64"},
		{"both", []string{"fd00::77", "10.0.0.2"}, "10.0.0.2/24 fd00::77/64"},
		{"twice the same", []string{"fd00::78", "fd00::78"}, "10.0.0.3/24 fd00::78/64"},
	} {
		if got := d.mustAllocate(tt.id, tt.wanted...); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.id, got, tt.want)
		}
	}
}

func TestExhaustion(t *testing.T) {
	d := newDesk(t, Set{hosts("10.244.1.0/24")}, Set{hosts("fd00::/64")})
	for i := range 253 {
		d.expect(fmt.Sprint("pod", i), fmt.Sprintf("10.244.1.%d/24 fd00::%x/64", 2+i, 2+i))
	}
	_, err := d.allocate("one too many")
	var exhausted *ExhaustedError
	if !errors.As(err, &exhausted) || err.Error() != "no addresses left in 10.244.1.0/24" {
		t.Fatalf("got error %v", err)
	}
	d.release("pod9")
	d.expect("another", "10.244.1.11/24 fd00::ff/64")
}

func TestHugeRanges(t *testing.T) {
	d := newDesk(t, Set{hosts("::/1")}, Set{hosts("8000::/1")}, Set{hosts("0.0.0.0/1")})
	d.expect("a", "::2/1 8000::2/1 0.0.0.2/1")
	if got, want := d.mustAllocate("b", "7fff::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "7fff::1/1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/1 0.0.0.3/1"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	d.release("a")
	d.release("b")
	d.expect("c", "::3/1 8000::3/1 0.0.0.4/1")
}

func TestReclaim(t *testing.T) {
	tx := memory{}
	sets := []Set{{hosts("10.0.0.0/24")}}
	in := func(boot, id string) Lease {
		t.Helper()
		o := Owner{ContainerID: id, IfName: "eth0"}
		if err := Reclaim(tx, boot); err != nil {
			t.Fatal(err)
		}
		if _, err := Allocate(tx, sets, Request{Owner: o, Boot: boot, Netns: "/run/netns/" + id, Pod: "default/" + id, Now: time.Unix(7, 0).UTC()}); err != nil {
			t.Fatal(err)
		}
		tx.verify(t)
		lease, err := Held(tx, o)
		if err != nil {
			t.Fatal(err)
		}
		return lease
	}
	want := Lease{
		Owner: Owner{"a", "eth0"}, Addrs: addrs("10.0.0.2"), Boot: "one",
		Netns: "/run/netns/a", Pod: "default/a", Since: time.Unix(7, 0).UTC(),
	}
	if diff := cmp.Diff(want, in("one", "a"), sameAddrs); diff != "" {
		t.Errorf("lease: -want +got\n%s", diff)
	}
	if got := in("one", "b").Addrs; got[0] != addrs("10.0.0.3")[0] {
		t.Errorf("in the same boot: got %s", got)
	}
	if got := in("two", "c").Addrs; got[0] != addrs("10.0.0.2")[0] {
		t.Errorf("in the next boot: got %s", got)
	}
	if lease, err := Held(tx, want.Owner); err != nil || len(lease.Addrs) > 0 {
		t.Errorf("a lease of the boot before is held: %v, %v", lease, err)
	}
}

// TestStocksOfOldConfigurationsGo keeps runtimes that send ranges of their own
// with every pod from filling the store with ranges that nobody uses.
func TestStocksOfOldConfigurationsGo(t *testing.T) {
	d := newDesk(t)
	for i := range 20 {
		d.sets = []Set{{hosts(fmt.Sprintf("10.0.%d.0/24", i))}}
		d.mustAllocate("a")
		d.release("a")
	}
	d.mustAllocate("a")
	if n := len(d.tx.withPrefix(stockPrefix)); n != 1 {
		t.Errorf("%d stocks are stored, want 1", n)
	}
	d.sets = []Set{{hosts("10.1.0.0/24")}}
	d.mustAllocate("b")
	if n := len(d.tx.withPrefix(stockPrefix)); n != 2 {
		t.Errorf("%d stocks are stored while both ranges are used, want 2", n)
	}
}
