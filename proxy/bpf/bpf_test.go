package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/service"
)

// start makes a backend in a namespace and a cgroup of its own, which go with the
// test.
func start(t testing.TB, config Config) *Backend {
	t.Helper()
	return startIn(t, netns.NewT(t), config)
}

func startIn(t testing.TB, ns *netns.NS, config Config) *Backend {
	t.Helper()
	if config.Root == "" {
		config.Root, config.CgroupRoot = filepath.Join(t.TempDir(), "bpf"), cgroup.NewT(t).Path
	}
	var b *Backend
	err := ns.Do(func() (err error) {
		b, err = New(config)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = b.Close() // again, where the test has
		if err := ns.Do(func() error { return HandOver(config.Root) }); err != nil {
			t.Error(err)
		}
	})
	return b
}

// cluster is n Services of one port, each with so many endpoints, over TCP but for
// every tenth.
func cluster(n, endpoints int) *service.Resolver {
	r := service.NewResolver(service.Config{NodeName: "n1"})
	u := service.Update{Services: map[service.Name]*service.Service{}, Slices: map[service.Name]*service.Slice{}}
	for i := range n {
		name := service.Name{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
		port := service.Port{Protocol: service.TCP, Number: 80}
		if i%10 == 9 {
			port.Protocol = service.UDP
		}
		u.Services[name] = &service.Service{
			Name: name, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})},
			Ports: []service.ServicePort{{Port: port}},
		}
		u.Slices[name] = slice(name, port, i, endpoints)
	}
	u.Nodes = map[string]*service.Node{"n1": {
		Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("192.168.50.1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
	}}
	r.Apply(u)
	return r
}

func slice(name service.Name, port service.Port, i, endpoints int) *service.Slice {
	s := &service.Slice{Name: name, Service: name.Name, Ports: []service.Port{{Protocol: port.Protocol, Number: 8080}}}
	for e := range endpoints {
		addr := netip.AddrFrom4([4]byte{10, 128 + byte(e), byte(i >> 8), byte(i)})
		s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: addr, Ready: true, Serving: true, Node: "n2"})
	}
	return s
}

// sync is the first Sync of a Table, or a later one of what changed in it.
func sync(t testing.TB, b *Backend, r *service.Resolver, change service.Change) {
	t.Helper()
	if err := b.Sync(t.Context(), r.Table(), change); err != nil {
		t.Fatal(err)
	}
}

// resize gives a Service another number of endpoints.
func resize(r *service.Resolver, i, endpoints int) service.Change {
	name := service.Name{Namespace: "default", Name: fmt.Sprintf("s%d", i)}
	return r.Apply(service.Update{Slices: map[service.Name]*service.Slice{
		name: slice(name, service.Port{Protocol: service.TCP}, i, endpoints),
	}})
}

func TestRestart(t *testing.T) {
	r := cluster(300, 3)
	node := netns.NewT(t)
	first := startIn(t, node, Config{})
	sync(t, first, r, service.Change{})
	sync(t, first, r, resize(r, 7, 2))
	wrote := first.written
	if wrote != 2+1+3 { // two rows of backends, the pool's, three of those before
		t.Errorf("one endpoint less: %d rows written", wrote)
	}
	config := first.config
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	second := startIn(t, node, config)
	sync(t, second, r, service.Change{})
	if second.written != 0 {
		t.Errorf("a new process on maps that are right wrote %d rows", second.written)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}

	// What changed while there was no process.
	resize(r, 7, 4)
	r.Apply(service.Update{Services: map[service.Name]*service.Service{{Namespace: "default", Name: "s8"}: nil}})
	third := startIn(t, node, config)
	sync(t, third, r, service.Change{})
	if got, want := third.rows(t), fresh(t, r).rows(t); got != want {
		t.Errorf("after what changed meanwhile: rows %v, want %v", got, want)
	}
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}

	// Another size: the maps are made anew, and hold the same.
	config.Sizes = map[string]uint32{"backends": 5000}
	fourth := startIn(t, node, config)
	sync(t, fourth, r, service.Change{})
	if got, want := fourth.rows(t), fresh(t, r).rows(t); got != want {
		t.Errorf("in maps of another size: rows %v, want %v", got, want)
	}
	if err := fourth.Close(); err != nil {
		t.Fatal(err)
	}
	fifth := startIn(t, node, config)
	sync(t, fifth, r, service.Change{})
	if fifth.written != 0 {
		t.Errorf("in maps of another size: %d rows written again", fifth.written)
	}
	if err := fifth.Close(); err != nil {
		t.Fatal(err)
	}
}

func fresh(t *testing.T, r *service.Resolver) *Backend {
	t.Helper()
	b := start(t, Config{})
	sync(t, b, r, service.Change{})
	return b
}

// rowCounts is how many rows there are.
type rowCounts struct{ frontends, pools, backends, members, origins int }

func (b *Backend) rows(t *testing.T) rowCounts {
	t.Helper()
	d, err := read(&b.path.Maps)
	if err != nil {
		t.Fatal(err)
	}
	return rowCounts{len(d.frontends), len(d.pools), len(d.backends), len(d.members), len(d.origins)}
}

// TestFull has a map that is too small for one Service: it alone is refused, and
// served as soon as there is room.
func TestFull(t *testing.T) {
	r := cluster(20, 3)
	small := Config{Root: filepath.Join(t.TempDir(), "bpf"), CgroupRoot: cgroup.NewT(t).Path, Sizes: map[string]uint32{"backends": 59}}
	b := start(t, small)
	var refused *service.RefusedError
	err := b.Sync(t.Context(), r.Table(), service.Change{})
	if !errors.As(err, &refused) || len(refused.Services) != 1 {
		t.Fatalf("got %v, want one Service refused", err)
	}
	t.Log(err)
	var names []service.Name
	for name := range refused.Services {
		names = append(names, name)
	}
	sync(t, b, r, r.Quarantine(names...))
	if got := b.rows(t); got.frontends != 19 || got.backends != 57 {
		t.Errorf("rows %+v, want those of 19 Services", got)
	}
}

// TestDifferences has somebody write into the maps: what is other than it should be is
// told of the Services that it concerns, and of no other.
func TestDifferences(t *testing.T) {
	r := cluster(4, 2)
	b := start(t, Config{})
	sync(t, b, r, service.Change{})
	check := func(want map[string][]string) {
		t.Helper()
		differences, err := b.Differences(t.Context(), r.Table())
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]string{}
		for name, lines := range differences {
			got[name.String()] = lines
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	check(map[string][]string{})

	key := func(i byte) ebpf.FrontendKey {
		return keyRow(service.Key{Addr: netip.AddrFrom4([4]byte{10, 96, 0, i}), Port: 80, Protocol: service.TCP})
	}
	var row ebpf.Frontend
	if err := b.path.Frontends.Lookup(key(1), &row); err != nil {
		t.Fatal(err)
	}
	pool := row.Paths[ebpf.ClassPod].Pool
	var now ebpf.Pool
	if err := errors.Join(b.path.Frontends.Delete(key(0)), b.path.Frontends.Put(key(77), row), b.path.Pools.Lookup(pool, &now)); err != nil {
		t.Fatal(err)
	}
	now.Now.Count = 1
	if err := b.path.Pools.Put(pool, now); err != nil {
		t.Fatal(err)
	}
	const one, two = "to 10.128.0.1:8080", "to 10.128.0.1:8080 10.129.0.1:8080"
	check(map[string][]string{
		"default/s0": {"10.96.0.0:80/tcp is missing"},
		"default/s1": {
			"10.96.0.1:80/tcp from pod: " + one + " instead of " + two,
			"10.96.0.1:80/tcp from node: " + one + " masqueraded instead of " + two + " masqueraded",
			"10.96.0.1:80/tcp from outside: " + one + " masqueraded instead of " + two + " masqueraded",
			"10.96.0.77:80/tcp is there and should not be",
		},
	})
}

// TestConnections counts what the pools of a Service port have led.
func TestConnections(t *testing.T) {
	r := cluster(2, 2)
	b := start(t, Config{})
	sync(t, b, r, service.Change{})
	for _, p := range b.have.pools {
		if err := b.path.Turns.Put(p.number, ebpf.Turn{Taken: 5 + uint64(p.number), Kept: 2}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := b.Connections()
	if err != nil {
		t.Fatal(err)
	}
	want := map[service.Origin]uint64{
		{Service: service.Name{Namespace: "default", Name: "s0"}}: 7,
		{Service: service.Name{Namespace: "default", Name: "s1"}}: 8,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Netfilter is held to the flows that it translates, if there are any, until there are none.
func TestReleasesNetfilter(t *testing.T) {
	node := netns.NewT(t)
	held := func() bool { return strings.Contains(node.RunT(t, "nft", "list", "tables"), "fairlead-hold") }
	first := startIn(t, node, Config{})
	sync(t, first, cluster(1, 1), service.Change{})
	if held() {
		t.Error("it is held, and there is no flow")
	}
	if err := first.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}

	node.RunT(t, "conntrack", "-I", "-p", "tcp", "--state", "ESTABLISHED", "-t", "100", "-s", "10.0.0.2", "-d", "10.96.0.10", "--sport", "1000", "--dport", "80",
		"--reply-src", "10.128.0.1", "--reply-dst", "10.0.0.2", "--reply-port-src", "80", "--reply-port-dst", "1000")
	b := startIn(t, node, Config{})
	sync(t, b, cluster(1, 1), service.Change{})
	look := func() {
		for range looksUntilRelease {
			if ok, err := b.Intact(); err != nil || !ok {
				t.Fatal(ok, err)
			}
		}
	}
	if look(); !held() {
		t.Error("a flow is translated, and nobody holds it")
	}
	node.RunT(t, "conntrack", "-F")
	if look(); held() {
		t.Error("it is held for nothing")
	}
}

// TestRowsComeBack has somebody remove, change and add rows of the maps. All are as they
// were within a minute; and where nobody has, nothing is found.
func TestRowsComeBack(t *testing.T) {
	r := cluster(20, 3)
	name, port := service.Name{Namespace: "default", Name: "balanced"}, service.Port{Protocol: service.TCP, Number: 80}
	r.Apply(service.Update{
		Services: map[service.Name]*service.Service{name: {
			Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.200.1")}, Ports: []service.ServicePort{{Port: port}},
			LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("203.0.113.1")}, SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		}},
		Slices: map[service.Name]*service.Slice{name: slice(name, port, 200, 2)},
	})
	b := start(t, Config{})
	sync(t, b, r, service.Change{})
	m := &b.path.Maps
	intact := func() bool {
		b.looks = looksUntilRead - 1 // within a minute it is
		for range looksUntilRead / 10 {
			ok, err := b.Intact()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				return false
			}
		}
		return true
	}
	before := b.rows(t)
	for name, damage := range map[string]func() error{
		"nothing":          func() error { return nil },
		"frontend removed": func() error { return removeOne[ebpf.FrontendKey](m.Frontends) },
		"frontend added":   func() error { return m.Frontends.Put(ebpf.FrontendKey{Port: 7}, ebpf.Frontend{}) },
		"frontend changed": func() error {
			return changeOne(m.Frontends, ebpf.FrontendKey{}, func(f *ebpf.Frontend) { f.Paths[0].Verdict = ebpf.Drop })
		},
		"backend removed":   func() error { return removeOne[ebpf.BackendKey](m.Backends) },
		"backend added":     func() error { return m.Backends.Put(ebpf.BackendKey{Generation: 99999}, ebpf.Backend{}) },
		"backend changed":   func() error { return changeOne(m.Backends, ebpf.BackendKey{}, func(b *ebpf.Backend) { b.Port++ }) },
		"member removed":    func() error { return removeOne[ebpf.MemberKey](m.Members) },
		"member changed":    func() error { return changeOne(m.Members, ebpf.MemberKey{}, func(is *uint32) { *is = 0 }) },
		"pool changed":      func() error { return m.Pools.Put(uint32(0), ebpf.Pool{}) },
		"origin removed":    func() error { return removeOne[uint32](m.Origins) },
		"source removed":    func() error { return removeOne[ebpf.SourceKey](m.Sources) },
		"range removed":     func() error { return removeOne[ebpf.PrefixKey](m.PodCidrs) },
		"node addr removed": func() error { return removeOne[ebpf.Addr](m.NodeAddrs) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if got := intact(); got != (name == "nothing") {
				t.Errorf("intact: %v", got)
			}
			sync(t, b, r, service.Change{})
			differences, err := b.Differences(t.Context(), r.Table())
			if got := b.rows(t); err != nil || len(differences) > 0 || got != before {
				t.Errorf("afterwards: %v, %v, rows %v, want %v", differences, err, got, before)
			}
			if !intact() {
				t.Error("and is damaged again")
			}
		})
	}
}

func removeOne[K comparable](m *cilium.Map) error {
	var key K
	return errors.Join(m.NextKey(nil, &key), m.Delete(&key))
}

func changeOne[K comparable, V any](m *cilium.Map, _ K, change func(*V)) error {
	var key K
	var row V
	if err := errors.Join(m.NextKey(nil, &key), m.Lookup(&key, &row)); err != nil {
		return err
	}
	change(&row)
	return m.Put(&key, &row)
}
