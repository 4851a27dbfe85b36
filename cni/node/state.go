package node

import (
	"iter"
	"maps"
	"net/netip"
	"slices"
)

// state is what of ours the kernel has, in the order in which one thing needs the
// other. Everything is a key, by which the kernel finds it, and a
// value, which can be replaced.
type state struct {
	tunnels    map[string]Tunnel
	neighbours map[neighbourKey]MAC
	forwards   map[forwardKey]netip.Addr // node behind the tunnel
	routes     map[routeKey]hop
	rules      map[Rule]struct{}
}

type neighbourKey struct {
	tunnel string
	addr   netip.Addr
}

type forwardKey struct {
	tunnel string
	mac    MAC
}

type routeKey struct {
	table int
	dst   netip.Prefix
}

type hop struct {
	dev      string
	via, src netip.Addr
	mtu      int // 0: the device's
}

func newState() state {
	return state{
		tunnels:    map[string]Tunnel{},
		neighbours: map[neighbourKey]MAC{},
		forwards:   map[forwardKey]netip.Addr{},
		routes:     map[routeKey]hop{},
		rules:      map[Rule]struct{}{},
	}
}

// The plan in the same words.

func (p Plan) tunnels() iter.Seq2[string, Tunnel] {
	return func(yield func(string, Tunnel) bool) {
		for _, t := range p.Tunnels {
			if !yield(t.Name, t) {
				return
			}
		}
	}
}

func (p Plan) neighbours() iter.Seq2[neighbourKey, MAC] {
	return func(yield func(neighbourKey, MAC) bool) {
		for _, n := range p.Neighbours {
			if !yield(neighbourKey{n.Tunnel, n.Addr}, n.MAC) {
				return
			}
		}
	}
}

func (p Plan) forwards() iter.Seq2[forwardKey, netip.Addr] {
	return func(yield func(forwardKey, netip.Addr) bool) {
		for _, n := range p.Neighbours {
			if !yield(forwardKey{n.Tunnel, n.MAC}, n.Remote) {
				return
			}
		}
	}
}

func (p Plan) routes() iter.Seq2[routeKey, hop] {
	return func(yield func(routeKey, hop) bool) {
		for _, r := range p.Routes {
			if !yield(routeKey{r.Table, r.Dst}, hop{r.Dev, r.Via, r.Src, r.MTU}) {
				return
			}
		}
	}
}

func (p Plan) rules() iter.Seq2[Rule, struct{}] {
	return func(yield func(Rule, struct{}) bool) {
		for _, r := range p.Rules {
			if !yield(r, struct{}{}) {
				return
			}
		}
	}
}

// differing is what p has and old has not, and the other way round: of each list
// and family what is left without the beginning and the end that both share.
func (p Plan) differing(old Plan) (Plan, *Plan) {
	p.Tunnels, old.Tunnels = middles(p.Tunnels, old.Tunnels)
	p.Neighbours, old.Neighbours = middlesByFamily(p.Neighbours, old.Neighbours, func(n Neighbour) bool { return n.Addr.Is6() })
	p.Routes, old.Routes = middlesByFamily(p.Routes, old.Routes, func(r Route) bool { return r.Dst.Addr().Is6() })
	p.Rules, old.Rules = middles(p.Rules, old.Rules)
	return p, &old
}

func middlesByFamily[T comparable](a, b []T, is6 func(T) bool) ([]T, []T) {
	second := func(list []T) int { // where the second family begins
		if i := slices.IndexFunc(list, is6); i >= 0 {
			return i
		}
		return len(list)
	}
	i, j := second(a), second(b)
	a4, b4 := middles(a[:i], b[:j])
	a6, b6 := middles(a[i:], b[j:])
	return slices.Concat(a4, a6), slices.Concat(b4, b6)
}

func middles[T comparable](a, b []T) ([]T, []T) {
	for len(a) > 0 && len(b) > 0 && a[0] == b[0] {
		a, b = a[1:], b[1:]
	}
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

// without is the plan less what goes through a tunnel.
func (p Plan) without(tunnel string) Plan {
	is := func(name string) bool { return name == tunnel }
	p.Tunnels = slices.DeleteFunc(slices.Clone(p.Tunnels), func(t Tunnel) bool { return is(t.Name) })
	p.Neighbours = slices.DeleteFunc(slices.Clone(p.Neighbours), func(n Neighbour) bool { return is(n.Tunnel) })
	p.Routes = slices.DeleteFunc(slices.Clone(p.Routes), func(r Route) bool { return is(r.Dev) })
	return p
}

// forget drops what went with a tunnel.
func (s *state) forget(tunnel string) {
	delete(s.tunnels, tunnel)
	maps.DeleteFunc(s.neighbours, func(k neighbourKey, _ MAC) bool { return k.tunnel == tunnel })
	maps.DeleteFunc(s.forwards, func(k forwardKey, _ netip.Addr) bool { return k.tunnel == tunnel })
	maps.DeleteFunc(s.routes, func(_ routeKey, h hop) bool { return h.dev == tunnel })
}
