package node

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// planned is what plans want, without a kernel.
type planned struct{ state }

func (p *planned) whole(plan Plan) {
	p.state = newState()
	maps.Insert(p.tunnels, plan.tunnels())
	maps.Insert(p.rules, plan.rules())
	p.add(plan)
}

func (p *planned) add(plan Plan) {
	maps.Insert(p.neighbours, plan.neighbours())
	maps.Insert(p.forwards, plan.forwards())
	maps.Insert(p.routes, plan.routes())
}

func (p *planned) change(c Change) {
	for k := range c.Old.neighbours() {
		delete(p.neighbours, k)
	}
	for k := range c.Old.forwards() {
		delete(p.forwards, k)
	}
	for k := range c.Old.routes() {
		delete(p.routes, k)
	}
	p.add(c.New)
}

// anyMember is a node of which some contradict others, or have something less.
func anyMember(r *rand.Rand, i int) Member {
	m := benchMembers(i + 1)[i]
	m.Created = time.Unix(int64(r.IntN(3)), 0)
	switch r.IntN(12) {
	case 0:
		m.PodCIDRs[0] = benchMembers(r.IntN(20) + 1)[0].PodCIDRs[0]
	case 1:
		m.PodCIDRs[0] = netip.PrefixFrom(m.PodCIDRs[0].Addr(), 21).Masked()
	case 2:
		m.PodCIDRs = m.PodCIDRs[:1]
	case 3:
		m.PodCIDRs = nil
	case 4:
		m.Addrs = m.Addrs[1:]
	case 5:
		m.Addrs = benchMembers(r.IntN(20) + 1)[0].Addrs
	case 6:
		m.Addrs[0] = m.PodCIDRs[0].Addr().Next()
	case 7, 8:
		m.Addrs = addrs(fmt.Sprintf("10.200.%d.9", i), fmt.Sprintf("fd0a:%d::9", i))
	}
	return m
}

// What changes make of a plan is what a whole new one is, whatever the nodes are.
func TestPlannerChanges(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	u := testUnderlay()
	u.Addrs = map[netip.Addr]Device{netip.MustParseAddr("10.100.255.1"): {"eth0", 1500}, netip.MustParseAddr("fd00::ff:1"): {"eth0", 1500}}
	u.Routes[netip.MustParsePrefix("10.100.0.0/16")] = Path{Device{"eth0", 1500}, true}
	u.Routes[netip.MustParsePrefix("10.200.3.0/24")] = Path{Device{"eth1", 1400}, false}
	self := Member{Name: "self", Addrs: addrs("10.100.255.1", "fd00::ff:1"), PodCIDRs: cidrs("192.168.0.0/24", "fd77::/64")}
	changes := 0
	for _, options := range []Options{{Routing: Auto}, {Routing: VXLAN}, {Routing: Direct}, {Routing: Auto, Services: cidrs("172.16.7.0/24")}, {Routing: Auto, MTU: 1380}} {
		p := NewPlanner("self", options)
		p.Set(self, u)
		var got planned
		members := map[string]Member{}
		for step := range 300 {
			var c Change
			var ok bool
			if i := r.IntN(20); r.IntN(3) == 0 {
				name := benchMembers(i + 1)[i].Name
				delete(members, name)
				c, ok = p.Remove(name, u)
			} else {
				m := anyMember(r, i)
				// Most clusters are in order, as this one is until step 100.
				if step < 100 || r.IntN(2) == 0 {
					m = benchMembers(i + 1)[i]
				}
				members[m.Name] = m
				c, ok = p.Set(m, u)
			}
			if ok {
				changes++
				got.change(c)
			} else {
				got.whole(p.Whole(u))
			}
			plan := Make(self, values(members), u, options)
			var want planned
			want.whole(plan)
			diff := cmp.Diff(want.state, got.state, compareStates...)
			diff += cmp.Diff(Summary{plan.MTU, plan.Ready, plan.Problems, len(plan.Tunnels), len(plan.Routes)}, p.Summary())
			if diff != "" {
				t.Fatalf("seed %d, step %d, change %t %+v (-whole +changed):\n%s", seed, step, ok, c, diff)
			}
		}
	}
	if changes < 100 {
		t.Errorf("only %d of the plans were changed", changes)
	}
}

func values(members map[string]Member) []Member {
	var all []Member
	for _, m := range members {
		all = append(all, m)
	}
	return all
}

var (
	sameAddrs    = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	samePrefixes = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
)
