package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// model is the allocator as one would explain it: every set is a queue of its
// addresses, lowest first; the first one that is free is given, and a freed one
// goes to the end.
type model struct {
	queues [][]netip.Addr
	held   map[netip.Addr]Owner
	leases map[Owner][]netip.Addr
}

func newModel(sets []Set) *model {
	m := &model{held: map[netip.Addr]Owner{}, leases: map[Owner][]netip.Addr{}}
	what := reserved(sets)
	for _, set := range sets {
		var queue []netip.Addr
		for _, r := range set {
			for addr := r.First; r.Contains(addr); addr = addr.Next() {
				if what[addr] == "" {
					queue = append(queue, addr)
				}
			}
		}
		m.queues = append(m.queues, queue)
	}
	return m
}

// allocate returns nil where the allocator must refuse.
func (m *model) allocate(o Owner, wanted ...netip.Addr) []netip.Addr {
	if m.leases[o] != nil {
		return nil
	}
	var given []netip.Addr
	for _, queue := range m.queues {
		free := func(addr netip.Addr) bool { _, held := m.held[addr]; return !held }
		i := slices.IndexFunc(queue, free)
		for _, addr := range wanted {
			if slices.Contains(queue, addr) {
				i = slices.Index(queue, addr)
			}
		}
		if i < 0 || !free(queue[i]) {
			return nil
		}
		given = append(given, queue[i])
	}
	for _, addr := range wanted {
		if !slices.Contains(given, addr) {
			return nil
		}
	}
	for _, addr := range given {
		m.held[addr] = o
	}
	m.leases[o] = given
	return given
}

func (m *model) release(o Owner) {
	for _, addr := range m.leases[o] {
		delete(m.held, addr)
		for i, queue := range m.queues {
			if at := slices.Index(queue, addr); at >= 0 {
				m.queues[i] = append(slices.Delete(queue, at, at+1), addr)
			}
		}
	}
	delete(m.leases, o)
}

func plain(given []Address) []netip.Addr {
	var addrs []netip.Addr
	for _, a := range given {
		addrs = append(addrs, a.Prefix.Addr())
	}
	return addrs
}

func owner(n byte) Owner {
	return Owner{ContainerID: fmt.Sprintf("c%d", n/2), IfName: fmt.Sprintf("net%d", n%2)}
}

var (
	small4 = Range{Subnet: netip.MustParsePrefix("10.0.0.0/29"), First: netip.MustParseAddr("10.0.0.1"),
		Last: netip.MustParseAddr("10.0.0.6"), Gateway: netip.MustParseAddr("10.0.0.1")}
	part4 = Range{Subnet: netip.MustParsePrefix("10.0.1.0/24"), First: netip.MustParseAddr("10.0.1.4"),
		Last: netip.MustParseAddr("10.0.1.9"), Gateway: netip.MustParseAddr("10.0.1.6")}
	top6 = Range{Subnet: netip.MustParsePrefix("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"),
		First:   netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0"),
		Last:    netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
		Gateway: netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff1")}
)

// FuzzModel drives the allocator and the model by one list of operations, two
// bytes each, and expects the same answers.
func FuzzModel(f *testing.F) {
	f.Add([]byte("a1a2a3a4r1r2a5a6"))
	f.Add([]byte("w1w2w3w1r1w1a1a2a3"))
	f.Add([]byte("a0a1a2a3a4a5a6a7a8a9aaabacadaeafr5r3a5a3b0a1a2a3"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		sets := []Set{{small4, part4}, {top6}}
		tx, want := memory{}, newModel(sets)
		wantable := slices.Concat(want.queues...)
		boot := 0
		now := time.Unix(1, 0)
		for ; len(ops) > 1; ops = ops[2:] {
			op, arg := ops[0], ops[1]
			now = now.Add(time.Second)
			req := Request{Owner: owner(arg % 16), Now: now}
			switch op {
			case 'b':
				boot++
				want = newModel(sets)
			case 'r':
				want.release(req.Owner)
			case 'w':
				req.Wanted = []netip.Addr{wantable[int(arg)%len(wantable)]}
			}
			err := tx.try(func(tx Tx) error {
				if err := Reclaim(tx, fmt.Sprint(boot)); err != nil || op == 'b' {
					return err
				}
				if op == 'r' {
					return Release(tx, req.Owner, now)
				}
				given, err := Allocate(tx, sets, req)
				if diff := cmp.Diff(want.allocate(req.Owner, req.Wanted...), plain(given), sameAddrs); diff != "" {
					t.Fatalf("allocate for %s, wanting %s (error %v): -want +got\n%s", req.Owner, req.Wanted, err, diff)
				}
				if refused := (*RequestError)(nil); errors.As(err, &refused) {
					t.Fatalf("allocate for %s: %v", req.Owner, err)
				}
				return err
			})
			if err != nil && (op == 'b' || op == 'r') {
				t.Fatal(err)
			}
			tx.verify(t)
		}
	})
}

// sameAddrs compares addresses, and takes none for nil.
var sameAddrs = cmp.Options{cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}

// FuzzConfigs changes the configuration between operations, also cooldown and
// sticky. Whatever is done in
// whatever order, no address has two owners, none is lost, and the current
// configuration's addresses can all be given.
func FuzzConfigs(f *testing.F) {
	f.Add([]byte("c0a1a2c1a3a4c2r1r3c0a1a5r2a6"))
	f.Add([]byte("c0a1a2a3c2a4r1r2r3")) // an address that is held becomes a gateway
	f.Add([]byte("c3a1c1a2a3a4a5r1c3a1r1c0r2a1c3a9"))
	f.Add([]byte("s1s2s3r1r2c1s1s4c2r3s2r1c0s1r4s3"))
	wide4 := small4
	wide4.Last = netip.MustParseAddr("10.0.0.4")
	other4 := small4
	other4.Gateway = netip.MustParseAddr("10.0.0.3")
	configs := [][]Set{{{small4}}, {{wide4, part4}}, {{other4}, {part4}}, {{part4}}}
	f.Fuzz(func(t *testing.T, ops []byte) {
		tx, sets := memory{}, configs[0]
		now := time.Unix(1, 0)
		for ; len(ops) > 1; ops = ops[2:] {
			op, arg := ops[0], ops[1]
			now = now.Add(time.Second)
			switch op {
			case 'c':
				sets = configs[int(arg)%len(configs)]
			case 'r':
				if err := tx.try(func(tx Tx) error { return Release(tx, owner(arg%16), now) }); err != nil {
					t.Fatal(err)
				}
			default:
				_ = tx.try(func(tx Tx) error {
					_, err := Allocate(tx, sets, Request{
						Owner: owner(arg % 16), Now: now, Cooldown: time.Duration(arg%8) * time.Second,
						Pod: fmt.Sprint(arg % 4), Sticky: op == 's',
					})
					return err
				})
			}
			tx.verify(t)
		}
		drain(t, tx, sets)
	})
}

// drain allocates until nothing is left, and checks that only held and reserved
// addresses were out of reach.
func drain(t *testing.T, tx memory, sets []Set) {
	t.Helper()
	for i, set := range sets {
		want := 0
		for _, addr := range newModel(sets).queues[i] {
			if held, _ := has(tx, addrKey(addr)); !held {
				want++
			}
		}
		got := 0
		for {
			o := Owner{ContainerID: "drain", IfName: fmt.Sprint(i, " ", got)}
			err := tx.try(func(tx Tx) error {
				_, err := Allocate(tx, []Set{set}, Request{Owner: o})
				return err
			})
			if exhausted := (*ExhaustedError)(nil); errors.As(err, &exhausted) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			got++
		}
		if got != want {
			t.Fatalf("%d addresses could be given of %s, want %d", got, set, want)
		}
	}
}
