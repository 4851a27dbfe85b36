package service

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	web  = Name{"default", "web"}
	vip4 = netip.MustParseAddr("10.96.0.10")
	vip6 = netip.MustParseAddr("fd00:10:96::a")
)

func webService() *Service {
	return &Service{
		Name:       web,
		ClusterIPs: []netip.Addr{vip4, vip6},
		Ports:      []ServicePort{{Port: Port{"http", TCP, 80}}},
	}
}

func webSlice(name string, endpoints ...Endpoint) *Slice {
	return &Slice{
		Name:      Name{"default", name},
		Service:   "web",
		Ports:     []Port{{"http", TCP, 8080}, {"other", TCP, 1}},
		Endpoints: endpoints,
	}
}

func ready(addr string) Endpoint {
	return Endpoint{Addr: netip.MustParseAddr(addr), Ready: true, Serving: true}
}

func addrPorts(s ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range s {
		out = append(out, netip.MustParseAddrPort(a))
	}
	return out
}

func TestUsableEndpoints(t *testing.T) {
	notReady := func(addr string) Endpoint { return Endpoint{Addr: netip.MustParseAddr(addr)} }
	leaving := func(addr string, serving bool) Endpoint {
		return Endpoint{Addr: netip.MustParseAddr(addr), Serving: serving, Terminating: true}
	}
	tests := []struct {
		name   string
		slices []*Slice
		want   []netip.AddrPort
	}{
		{"none", nil, nil},
		{"sorted over slices", []*Slice{webSlice("b", ready("10.244.2.2")), webSlice("a", ready("10.244.1.9"), ready("10.244.1.2"))},
			addrPorts("10.244.1.2:8080", "10.244.1.9:8080", "10.244.2.2:8080")},
		{"in two slices at once", []*Slice{webSlice("a", ready("10.244.1.2")), webSlice("b", notReady("10.244.1.2"))},
			addrPorts("10.244.1.2:8080")},
		{"not ready is left out", []*Slice{webSlice("a", ready("10.244.1.2"), notReady("10.244.1.3"))},
			addrPorts("10.244.1.2:8080")},
		{"terminating is left out while one is ready", []*Slice{webSlice("a", ready("10.244.1.2"), leaving("10.244.1.3", true))},
			addrPorts("10.244.1.2:8080")},
		{"serving while terminating is the last resort", []*Slice{webSlice("a", notReady("10.244.1.2"), leaving("10.244.1.3", true), leaving("10.244.1.4", false))},
			addrPorts("10.244.1.3:8080")},
		{"one family", []*Slice{webSlice("a", ready("fd00::1"), ready("10.244.1.2"))},
			addrPorts("10.244.1.2:8080")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := choose(endpointsOf(webService().Ports[0].Port, false, tt.slices, place{}))
			if diff := cmp.Diff(tt.want, got.cluster, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// node is this node's object in the tests.
func node() *Node {
	return &Node{
		Name:      "n1",
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.1")},
		PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
	}
}

func resolver(services []*Service, from []*Slice) *Resolver {
	r := NewResolver(Config{NodeName: "n1"})
	u := Update{Services: map[Name]*Service{}, Slices: map[Name]*Slice{}, Nodes: map[string]*Node{"n1": node()}}
	for _, s := range services {
		u.Services[s.Name] = s
	}
	for _, s := range from {
		u.Slices[s.Name] = s
	}
	r.Apply(u)
	return r
}

func TestLookup(t *testing.T) {
	r := resolver([]*Service{webService()}, []*Slice{webSlice("a", ready("10.244.1.2"), ready("10.244.2.2"))})
	tests := []struct {
		name       string
		src, dst   string
		protocol   Protocol
		verdict    Verdict
		masquerade bool // towards 10.244.1.2
	}{
		{"pod", "10.244.1.7", "10.96.0.10:80", TCP, Forward, false},
		{"pod to itself", "10.244.1.2", "10.96.0.10:80", TCP, Forward, true},
		{"this node", "192.168.0.1", "10.96.0.10:80", TCP, Forward, true},
		{"this node by loopback", "127.0.0.1", "10.96.0.10:80", TCP, Forward, true},
		{"outside", "203.0.113.9", "10.96.0.10:80", TCP, Forward, true},
		{"mapped address", "::ffff:203.0.113.9", "[::ffff:10.96.0.10]:80", TCP, Forward, true},
		{"no endpoint of that family", "fd00::9", "[fd00:10:96::a]:80", TCP, Reject, false},
		{"other protocol", "10.244.1.7", "10.96.0.10:80", UDP, Pass, false},
		{"other port", "10.244.1.7", "10.96.0.10:81", TCP, Pass, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := r.Table().Lookup(Packet{Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddrPort(tt.dst), Protocol: tt.protocol})
			masquerade := d.Masquerades(netip.MustParseAddrPort("10.244.1.2:8080"))
			if d.Verdict != tt.verdict || masquerade != tt.masquerade {
				t.Errorf("got %v, masquerade %v; want %v, %v", d.Verdict, masquerade, tt.verdict, tt.masquerade)
			}
			if d.Verdict == Forward && len(d.Backends) != 2 {
				t.Errorf("backends: %v", d.Backends)
			}
		})
	}
}

func TestConflicts(t *testing.T) {
	at := func(hour int) time.Time { return time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC) }
	claimant := func(name string, created time.Time) *Service {
		return &Service{Name: Name{"default", name}, Created: created, ClusterIPs: []netip.Addr{vip4},
			Ports: []ServicePort{{Port: Port{Protocol: TCP, Number: 80}}}}
	}
	key := Key{vip4, 80, TCP}
	winner := func(r *Resolver) string { return r.Table().Frontends[key].Origin.Service.Name }

	r := resolver([]*Service{claimant("b", at(1)), claimant("c", at(2)), claimant("a", at(2))}, nil)
	if got := winner(r); got != "b" {
		t.Errorf("the oldest should win, got %s", got)
	}
	origin := func(name string) Origin { return Origin{Service: Name{"default", name}} }
	want := []Conflict{{key, origin("b"), origin("a")}, {key, origin("b"), origin("c")}}
	if diff := cmp.Diff(want, r.Conflicts(), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Error(diff)
	}

	r.Apply(Update{Services: map[Name]*Service{{"default", "b"}: nil}})
	if got := winner(r); got != "a" {
		t.Errorf("of two of one age the first by name should win, got %s", got)
	}
	r.Apply(Update{Services: map[Name]*Service{{"default", "a"}: nil, {"default", "c"}: nil}})
	if len(r.Table().Frontends) != 0 || len(r.Conflicts()) != 0 {
		t.Errorf("left over: %v, %v", r.Table().Frontends, r.Conflicts())
	}

	twice := claimant("twice", at(1))
	twice.Ports = []ServicePort{{Port: Port{"first", TCP, 80}}, {Port: Port{"second", TCP, 80}}}
	r = resolver([]*Service{twice}, nil)
	if c := r.Conflicts(); len(c) != 1 || c[0].Winner.Port != "first" || c[0].Loser.Port != "second" {
		t.Errorf("clash within a Service: %v", c)
	}
}

func TestClusterCIDRsStandForAllPods(t *testing.T) {
	all := netip.MustParsePrefix("10.244.0.0/16")
	r := NewResolver(Config{NodeName: "n1", Pods: ByClusterCIDR, ClusterCIDRs: []netip.Prefix{all}})
	r.Apply(Update{Nodes: map[string]*Node{"n1": node()}})
	if got := r.Table().Class(netip.MustParseAddr("10.244.9.9"), ""); got != FromPod {
		t.Errorf("pod of another node: %v", got)
	}
}

// Without pod ranges nobody is known to be outside; when this node's object
// arrives, every Service is resolved again.
func TestSendersChange(t *testing.T) {
	r := NewResolver(Config{NodeName: "n1"})
	svc, slice := webService(), webSlice("a", ready("10.244.1.2"))
	r.Apply(Update{Services: map[Name]*Service{web: svc}, Slices: map[Name]*Slice{slice.Name: slice}})
	outside := Packet{Src: netip.MustParseAddr("203.0.113.9"), Dst: netip.AddrPortFrom(vip4, 80), Protocol: TCP}
	backend := netip.MustParseAddrPort("10.244.1.2:8080")
	if r.Table().Lookup(outside).Masquerades(backend) {
		t.Error("masquerades although nobody is known to be outside")
	}
	change := r.Apply(Update{Nodes: map[string]*Node{"n1": node()}})
	if !change.Node || !slices.Contains(change.Frontends, Key{vip4, 80, TCP}) {
		t.Errorf("change: %+v", change)
	}
	if !r.Table().Lookup(outside).Masquerades(backend) {
		t.Error("does not masquerade")
	}
	if change := r.Apply(Update{Nodes: map[string]*Node{"n1": node()}}); !change.Empty() {
		t.Errorf("same node again: %+v", change)
	}
}

// Of a family without a pod range nobody is masqueraded, since all may be pods.
func TestPodsAreKnownByFamily(t *testing.T) {
	r := NewResolver(Config{NodeName: "n1", Pods: ByClusterCIDR, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}})
	svc, slice := webService(), webSlice("a", ready("10.244.1.2"), ready("fd00::2"))
	r.Apply(Update{Services: map[Name]*Service{web: svc}, Slices: map[Name]*Slice{slice.Name: slice}})
	for vip, want := range map[netip.Addr]bool{vip4: true, vip6: false} {
		if got := r.Table().Frontends[Key{vip, 80, TCP}].Paths[FromOutside].Masquerade; got != want {
			t.Errorf("%s: masquerade %v, want %v", vip, got, want)
		}
	}
}

func TestHealthCheckCountsOneFamily(t *testing.T) {
	svc := webService()
	svc.ExternalLocal, svc.HealthCheckPort = true, 30100
	a, b, c := ready("10.244.1.2"), ready("fd00::2"), ready("10.244.2.2")
	a.Node, b.Node, c.Node = "n1", "n1", "n2"
	r := resolver([]*Service{svc}, []*Slice{webSlice("a", a, b), webSlice("b", a, c)})
	if got := r.Table().HealthChecks[web]; got != (HealthCheck{30100, 1}) {
		t.Errorf("got %+v", got)
	}
}

// world makes random updates over a few objects, so that they clash.
type world struct{ *rand.Rand }

func (w world) update() Update {
	u := Update{Services: map[Name]*Service{}, Slices: map[Name]*Slice{}, Nodes: map[string]*Node{}}
	for range w.IntN(3) {
		name := Name{"default", fmt.Sprintf("s%d", w.IntN(4))}
		u.Services[name] = w.service(name)
	}
	for range w.IntN(3) {
		name := Name{"default", fmt.Sprintf("e%d", w.IntN(5))}
		u.Slices[name] = w.slice(name)
	}
	if w.IntN(8) == 0 {
		u.Nodes["n1"] = node()
		u.Nodes["n1"].Zone = []string{"z1", "z2"}[w.IntN(2)]
		if w.IntN(2) == 0 {
			u.Nodes["n1"] = nil
		}
	}
	return u
}

func (w world) service(name Name) *Service {
	if w.IntN(4) == 0 {
		return nil
	}
	svc := &Service{
		Name: name, Created: time.Unix(int64(w.IntN(3)), 0),
		InternalLocal: w.IntN(4) == 0, ExternalLocal: w.IntN(4) == 0,
		Affinity: time.Duration(w.IntN(2)) * time.Hour, HealthCheckPort: uint16(w.IntN(2)),
		ResetOnRemoval: w.IntN(4) == 0,
	}
	if w.IntN(4) == 0 {
		svc.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")}
		svc.SourceRanges = [][]netip.Prefix{nil, {netip.MustParsePrefix("192.168.0.0/16")}}[w.IntN(2)]
	}
	for range w.IntN(3) {
		svc.ClusterIPs = append(svc.ClusterIPs, []netip.Addr{vip4, vip6, vip4.Next()}[w.IntN(3)])
		svc.Ports = append(svc.Ports, ServicePort{w.port(80), uint16(w.IntN(3))})
	}
	return svc
}

func (w world) port(base int) Port {
	return Port{[]string{"", "p", "q"}[w.IntN(3)], []Protocol{TCP, UDP, SCTP}[w.IntN(3)], uint16(base + w.IntN(2))}
}

func (w world) slice(name Name) *Slice {
	if w.IntN(4) == 0 {
		return nil
	}
	s := &Slice{Name: name, Service: []string{"", "s0", "s1", "s2", "s3"}[w.IntN(5)]}
	for range w.IntN(4) {
		s.Ports = append(s.Ports, w.port(8080))
		addr := []string{"10.244.1.2", "10.244.1.3", "fd00::1", "fd00::2"}[w.IntN(4)]
		s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.MustParseAddr(addr), Ready: w.IntN(2) == 0, Serving: w.IntN(2) == 0, Terminating: w.IntN(2) == 0, Node: []string{"", "n1"}[w.IntN(2)], ForZones: [][]string{nil, {"z1"}}[w.IntN(2)]})
	}
	return s
}

// A Table that grew by updates is the Table of a fresh Resolver that is told
// the end state, and Change names exactly the rows that differ.
func TestApplyEqualsFreshResolve(t *testing.T) {
	equal := []cmp.Option{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}), cmpopts.EquateEmpty()}
	for seed := range uint64(200) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		grown := NewResolver(Config{NodeName: "n1"})
		end := Update{Services: map[Name]*Service{}, Slices: map[Name]*Slice{}, Nodes: map[string]*Node{}}
		for range 20 {
			u := w.update()
			for k, v := range u.Services {
				end.Services[k] = v
			}
			for k, v := range u.Slices {
				end.Slices[k] = v
			}
			for k, v := range u.Nodes {
				end.Nodes[k] = v
			}
			before := copyTable(grown.Table())
			change := grown.Apply(u)
			if diff := cmp.Diff(differences(before, grown.Table()), change, equal...); diff != "" {
				t.Fatalf("seed %d: change (-differs +named):\n%s", seed, diff)
			}
			fresh := NewResolver(Config{NodeName: "n1"})
			fresh.Apply(end)
			if diff := cmp.Diff(fresh.Table(), grown.Table(), equal...); diff != "" {
				t.Fatalf("seed %d: (-fresh +grown):\n%s", seed, diff)
			}
			if diff := cmp.Diff(fresh.Conflicts(), grown.Conflicts(), equal...); diff != "" {
				t.Fatalf("seed %d: conflicts (-fresh +grown):\n%s", seed, diff)
			}
		}
	}
}

func copyTable(t *Table) *Table {
	c := *t
	c.Frontends = map[Key]Frontend{}
	for k, v := range t.Frontends {
		c.Frontends[k] = v
	}
	c.HealthChecks = maps.Clone(t.HealthChecks)
	c.Pools = map[PoolID]Pool{}
	for k, v := range t.Pools {
		c.Pools[k] = v
	}
	return &c
}

func differences(a, b *Table) Change {
	frontends, pools := map[Key]bool{}, map[PoolID]bool{}
	for _, pair := range [][2]*Table{{a, b}, {b, a}} {
		for k, v := range pair[0].Frontends {
			if w, ok := pair[1].Frontends[k]; !ok || !v.equal(w) {
				frontends[k] = true
			}
		}
		for k, v := range pair[0].Pools {
			if w, ok := pair[1].Pools[k]; !ok || !v.equal(w) {
				pools[k] = true
			}
		}
	}
	c := Change{Node: !slices.Equal(a.NodeAddrs, b.NodeAddrs) || !slices.Equal(a.NodePortCIDRs, b.NodePortCIDRs) ||
		!slices.Equal(a.PodCIDRs, b.PodCIDRs) || !slices.Equal(a.OwnPodCIDRs, b.OwnPodCIDRs)}
	for k := range frontends {
		c.Frontends = append(c.Frontends, k)
	}
	for k := range pools {
		c.Pools = append(c.Pools, k)
	}
	both := maps.Clone(a.HealthChecks)
	maps.Copy(both, b.HealthChecks)
	for name := range both {
		if a.HealthChecks[name] != b.HealthChecks[name] {
			c.HealthChecks = append(c.HealthChecks, name)
		}
	}
	slices.SortFunc(c.HealthChecks, Name.Compare)
	slices.SortFunc(c.Frontends, Key.Compare)
	slices.SortFunc(c.Pools, PoolID.Compare)
	return c
}

// A Service in quarantine is out of the Table until something of it changes.
func TestQuarantine(t *testing.T) {
	svc, slice := webService(), webSlice("a", ready("10.244.1.2"))
	r := resolver([]*Service{svc}, []*Slice{slice})
	key := Key{vip4, 80, TCP}
	if c := r.Quarantine(Name{"default", "nobody"}); !c.Empty() {
		t.Errorf("of a Service that is none: %+v", c)
	}
	if c := r.Quarantine(web); !slices.Contains(c.Frontends, key) || len(c.Pools) == 0 {
		t.Errorf("change: %+v", c)
	}
	if c := r.Quarantine(web); !c.Empty() {
		t.Errorf("twice: %+v", c)
	}
	if len(r.Table().Frontends) > 0 || len(r.Table().Pools) > 0 || !slices.Equal(r.Quarantined(), []Name{web}) {
		t.Errorf("in quarantine: %v %v, %v", r.Table().Frontends, r.Table().Pools, r.Quarantined())
	}
	if c := r.Apply(Update{Nodes: map[string]*Node{"other": node()}}); !c.Empty() {
		t.Errorf("another object: %+v", c)
	}
	c := r.Apply(Update{Slices: map[Name]*Slice{slice.Name: webSlice("a", ready("10.244.1.3"))}})
	if !slices.Contains(c.Frontends, key) || len(r.Quarantined()) > 0 {
		t.Errorf("after a change: %+v, %v", c, r.Quarantined())
	}
	r.Quarantine(web)
	if c := r.Release(); !slices.Contains(c.Frontends, key) || len(r.Quarantined()) > 0 || len(r.Table().Frontends) == 0 {
		t.Errorf("released: %+v, %v", c, r.Quarantined())
	}
	r.Quarantine(web)
	r.Apply(Update{Services: map[Name]*Service{web: nil}})
	if len(r.Quarantined()) > 0 {
		t.Errorf("gone: %v", r.Quarantined())
	}
}

// An endpoint that no slice says to be on a node is outside the cluster, unless its
// address is one of the node's or of pods.
func TestExternal(t *testing.T) {
	on := func(e Endpoint, node string) Endpoint { e.Node = node; return e }
	from := []*Slice{
		webSlice("a", ready("10.244.1.2"), ready("192.168.0.1"), ready("203.0.113.9"), on(ready("203.0.113.10"), "n2"), ready("203.0.113.11")),
		webSlice("b", on(ready("203.0.113.11"), "n3"), Endpoint{Addr: netip.MustParseAddr("203.0.113.12")}),
	}
	r := resolver([]*Service{webService()}, from)
	for id, pool := range r.Table().Pools {
		if got := fmt.Sprint(pool.External); got != "[203.0.113.9]" {
			t.Errorf("%s: %s", id, got)
		}
	}
	if len(r.Table().Pools) != 1 {
		t.Errorf("%d pools", len(r.Table().Pools))
	}
	change := r.Apply(Update{Slices: map[Name]*Slice{{"default", "b"}: nil}})
	if len(change.Pools) != 1 || len(r.Table().Pools[change.Pools[0]].External) != 2 {
		t.Errorf("not on a node any more: %+v", change)
	}
}
