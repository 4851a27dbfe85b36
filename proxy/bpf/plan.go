package bpf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/service"
)

// state is what the maps hold, as far as it is the Table's.
type state struct {
	frontends map[service.Key]frontend
	pools     map[service.PoolID]pool
	origins   map[string]origin // by what the row says
	nodeAddrs map[ebpf.Addr]ebpf.NodeAddr
	podCIDRs  map[ebpf.PrefixKey]uint32
	ownPods   []netip.Prefix // service.Table.OwnPodCIDRs

	// externals is how many pools have an address among their external ones; unsettled:
	// others than when somebody last asked which of them are masqueraded.
	externals map[netip.Addr]int
	unsettled bool

	poolNumbers, originNumbers, frontendNumbers numbers

	size map[string]int // how many rows go into a map
	free map[string]int // and how many more
}

// frontend is what the maps hold of a frontend.
type frontend struct {
	row     ebpf.Frontend
	origin  string
	sources []ebpf.SourceKey // sorted as in the Table
}

// origin is a Service port's number. It goes with the last frontend that has it.
type origin struct {
	number    uint32
	frontends int
}

func newState(size map[string]int) *state {
	return &state{
		frontends: map[service.Key]frontend{},
		pools:     map[service.PoolID]pool{},
		origins:   map[string]origin{},
		// Number 0 is that of frontends for which no source is looked up.
		frontendNumbers: numbers{next: 1},
		externals:       map[netip.Addr]int{},
		unsettled:       true,
		size:            size,
		free:            maps.Clone(size),
	}
}

// numbers gives out numbers. One that comes back rests for as long as others can
// be had: a program may still be at work with it.
type numbers struct {
	next    uint32
	back    []uint32 // the one that came back first is first
	resting []uint32 // came back in this update, whose plan may yet drop its rows
}

func (n *numbers) take() uint32 {
	if len(n.back) > 0 {
		number := n.back[0]
		n.back = n.back[1:]
		return number
	}
	n.next++
	return n.next - 1
}

func (n *numbers) giveBack(number uint32) { n.resting = append(n.resting, number) }

// settle begins another update.
func (n *numbers) settle() { n.back, n.resting = append(n.back, n.resting...), nil }

// numbersFrom has first and all after it, but for those in use.
func numbersFrom(first uint32, inUse []uint32) numbers {
	n := numbers{next: first}
	slices.Sort(inUse)
	for _, number := range inUse {
		for ; n.next < number; n.next++ {
			n.back = append(n.back, n.next)
		}
		n.next = max(n.next, number+1)
	}
	return n
}

// rows are those of one map that are to be written and those that are to go.
type rows[K comparable, V any] struct {
	keys   []K
	values []V
	gone   []K
}

func (r *rows[K, V]) put(k K, v V) { r.keys, r.values = append(r.keys, k), append(r.values, v) }
func (r *rows[K, V]) drop(k K)     { r.gone = append(r.gone, k) }

// replace makes have equal to want.
func (r *rows[K, V]) replace(have, want map[K]V, same func(a, b V) bool) {
	for k, v := range want {
		if old, ok := have[k]; !ok || !same(old, v) {
			r.put(k, v)
		}
	}
	for k := range have {
		if _, ok := want[k]; !ok {
			r.drop(k)
		}
	}
}

// plan is what must be written, in the order of the fields, and then what must
// go, in the opposite one: no row ever names another that is not there.
type plan struct {
	backends  rows[ebpf.BackendKey, ebpf.Backend]
	members   rows[ebpf.MemberKey, uint32]
	turns     rows[uint32, ebpf.Turn]
	pools     rows[uint32, ebpf.Pool]
	origins   rows[uint32, ebpf.Origin]
	sources   rows[ebpf.SourceKey, uint32]
	podCIDRs  rows[ebpf.PrefixKey, uint32]
	nodeAddrs rows[ebpf.Addr, ebpf.NodeAddr]
	frontends rows[ebpf.FrontendKey, ebpf.Frontend]

	// left are the Services that do not fit, and why.
	left map[service.Name]error
	// leaving: sockets may be connected to a backend that they must leave.
	leaving bool
}

// err says what does not fit, by a *service.RefusedError.
func (p *plan) err() error {
	if len(p.left) == 0 {
		return nil
	}
	return &service.RefusedError{Services: p.left}
}

// update plans what a change needs and notes it as done. Pools that are gone are
// dropped last: until then frontends may name them.
func (s *state) update(t *service.Table, change service.Change) *plan {
	p := &plan{left: map[service.Name]error{}}
	for _, n := range []*numbers{&s.poolNumbers, &s.originNumbers, &s.frontendNumbers} {
		n.settle()
	}
	for _, id := range change.Pools {
		if _, ok := t.Pools[id]; ok {
			s.setPool(p, id, t.Pools[id])
		}
	}
	if change.Node {
		s.setNode(p, t)
		change.Frontends = s.everything(t).Frontends // see setFrontend: podsKnown
	}
	for _, key := range change.Frontends {
		if f, ok := t.Frontends[key]; ok {
			s.setFrontend(p, key, f, podsKnown(t, key.Addr.Is6()))
		} else {
			s.dropFrontend(p, key)
		}
	}
	for _, id := range change.Pools {
		if old, ok := s.pools[id]; ok && !has(t.Pools, id) {
			s.dropPool(p, old)
			delete(s.pools, id)
		}
	}
	return p
}

// everything is the change from what the maps hold to the Table.
func (s *state) everything(t *service.Table) service.Change {
	return service.Change{
		Frontends: sortedUnion(t.Frontends, s.frontends, service.Key.Compare),
		Pools:     sortedUnion(t.Pools, s.pools, service.PoolID.Compare),
		Node:      true,
	}
}

func sortedUnion[K comparable, V, W any](a map[K]V, b map[K]W, compare func(K, K) int) []K {
	all := slices.AppendSeq(make([]K, 0, len(a)), maps.Keys(a))
	for k := range b {
		if _, ok := a[k]; !ok {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, compare)
	return all
}

func has[K comparable, V any](m map[K]V, k K) bool { _, ok := m[k]; return ok }

// need is a number of rows in a map.
type need struct {
	name string
	rows int
}

// reserve takes what an object needs, or says what does not fit and takes nothing.
func (s *state) reserve(needs ...need) error {
	for _, n := range needs {
		if s.free[n.name] < n.rows {
			return fmt.Errorf("map %s is full with %d rows (see --map-size)", n.name, s.size[n.name])
		}
	}
	for _, n := range needs {
		s.free[n.name] -= n.rows
	}
	return nil
}

// setPool writes the backends of a pool as another generation, if they changed.
func (s *state) setPool(p *plan, id service.PoolID, want service.Pool) {
	old, known := s.pools[id]
	if !known {
		old.number = s.poolNumbers.take()
	}
	now := poolRows(old.number, want)
	if known && now.equal(old) {
		return
	}
	needs := []need{{ebpf.MapLeaving, s.firstSeen(now.externals)}}
	stays := known && now.sameBackends(old)
	if !stays {
		needs = append(needs, need{ebpf.MapBackends, len(now.backends)}, need{ebpf.MapMembers, len(now.members)})
	}
	if !known {
		needs = append(needs, need{ebpf.MapPools, 1})
	}
	if err := s.reserve(needs...); err != nil {
		p.left[id.Service] = err
		if !known {
			s.poolNumbers.giveBack(old.number)
		}
		return
	}
	s.setExternals(old.externals, now.externals)
	if stays {
		if now.now = old.now; now.row() != old.row() {
			p.pools.put(now.number, now.row())
		}
		s.pools[id] = now
		return
	}
	now.now = ebpf.Generation{Id: old.other(), Count: uint32(len(now.backends))}
	p.writeGeneration(now)
	p.pools.put(now.number, now.row())
	if known {
		p.leaving = p.leaving || leaves(old.members, now.members)
		s.dropGeneration(p, old)
	} else {
		p.turns.put(now.number, ebpf.Turn{})
	}
	s.pools[id] = now
}

// firstSeen counts the addresses that no pool has among its external ones yet.
func (s *state) firstSeen(addrs []netip.Addr) (n int) {
	for _, a := range addrs {
		if s.externals[a] == 0 {
			n++
		}
	}
	return n
}

// setExternals notes that a pool has other external addresses, which have been reserved.
func (s *state) setExternals(old, now []netip.Addr) {
	if slices.Equal(old, now) {
		return
	}
	s.unsettled = true
	for _, a := range now {
		s.externals[a]++
	}
	for _, a := range old {
		if s.externals[a]--; s.externals[a] == 0 {
			delete(s.externals, a)
			s.free[ebpf.MapLeaving]++
		}
	}
}

// leaves says whether a member of old is none any more.
func leaves(old, now map[ebpf.Endpoint]uint32) bool {
	for m := range old {
		if !has(now, m) {
			return true
		}
	}
	return false
}

func (p *plan) writeGeneration(now pool) {
	id := now.now.Id
	for i, b := range now.backends {
		p.backends.put(ebpf.BackendKey{Generation: id, Index: uint32(i)}, backendRow(id, b))
	}
	for m, is := range now.members {
		p.members.put(ebpf.MemberKey{Generation: id, Backend: m}, is)
	}
}

func (s *state) dropGeneration(p *plan, old pool) {
	id := old.now.Id
	for i := range old.backends {
		p.backends.drop(ebpf.BackendKey{Generation: id, Index: uint32(i)})
	}
	for m := range old.members {
		p.members.drop(ebpf.MemberKey{Generation: id, Backend: m})
	}
	s.free[ebpf.MapBackends] += len(old.backends)
	s.free[ebpf.MapMembers] += len(old.members)
}

func (s *state) dropPool(p *plan, old pool) {
	p.pools.drop(old.number)
	p.leaving = p.leaving || len(old.members) > 0
	s.dropGeneration(p, old)
	s.setExternals(old.externals, nil)
	s.poolNumbers.giveBack(old.number)
	s.free[ebpf.MapPools]++
}

func (s *state) setNode(p *plan, t *service.Table) {
	addrs, cidrs := nodeRows(t), podRows(t)
	p.nodeAddrs.replace(s.nodeAddrs, addrs, func(a, b ebpf.NodeAddr) bool { return a == b })
	p.podCIDRs.replace(s.podCIDRs, cidrs, func(a, b uint32) bool { return a == b })
	s.unsettled = s.unsettled || !slices.Equal(s.ownPods, t.OwnPodCIDRs)
	s.nodeAddrs, s.podCIDRs, s.ownPods = addrs, cidrs, t.OwnPodCIDRs
}

// setFrontend writes the row of a frontend, if it changed. The socket path takes
// whoever is not the node for a pod: where nobody counts as one, it finds the path of
// those outside there.
func (s *state) setFrontend(p *plan, key service.Key, f service.Frontend, podsKnown bool) {
	if !podsKnown {
		f.Paths[service.FromPod] = f.Paths[service.FromOutside]
	}
	old, known := s.frontends[key]
	now := frontend{origin: f.Origin.String()}
	now.row = ebpf.Frontend{Key: keyRow(key), Id: old.row.Id}
	for class, path := range f.Paths {
		target, ok := s.pools[path.Pool]
		if path.Verdict == service.Forward && !ok {
			return // the pool is left out, and with it what leads there
		}
		now.row.Paths[classes[service.Class(class)]] = pathRow(path, target.number)
	}
	needs := []need{{ebpf.MapSources, len(f.Sources)}}
	if !known {
		needs = append(needs, need{ebpf.MapFrontends, 1})
	}
	if !has(s.origins, now.origin) {
		needs = append(needs, need{ebpf.MapOrigins, 1})
	}
	if err := s.reserve(needs...); err != nil {
		p.left[f.Origin.Service] = err
		return
	}
	s.setSources(p, old, &now, f.Sources)
	now.row.Origin = s.useOrigin(p, now.origin)
	if known {
		s.leaveOrigin(p, old.origin)
	}
	if now.row != old.row {
		p.frontends.put(now.row.Key, now.row)
		p.leaving = p.leaving || (known && key.Protocol == service.UDP)
	}
	s.frontends[key] = now
}

// setSources gives a frontend the senders that are allowed. Their rows have been
// reserved; those of old are given back.
func (s *state) setSources(p *plan, old frontend, now *frontend, allowed []netip.Prefix) {
	if len(allowed) > 0 {
		now.row.Flags |= ebpf.FrontendSources
		if now.row.Id == 0 {
			now.row.Id = s.frontendNumbers.take()
		}
	}
	for _, a := range allowed {
		row := sourceRow(now.row.Id, a)
		now.sources = append(now.sources, row)
		if !slices.Contains(old.sources, row) {
			p.sources.put(row, 1)
		}
	}
	s.free[ebpf.MapSources] += len(old.sources)
	for _, row := range old.sources {
		if !slices.Contains(now.sources, row) {
			p.sources.drop(row)
		}
	}
	if len(allowed) == 0 && now.row.Id != 0 {
		s.frontendNumbers.giveBack(now.row.Id)
		now.row.Id = 0
	}
}

// useOrigin is the number of a Service port for one more frontend.
func (s *state) useOrigin(p *plan, name string) uint32 {
	o, known := s.origins[name]
	if !known {
		o.number = s.originNumbers.take()
		p.origins.put(o.number, originRow(name))
	}
	o.frontends++
	s.origins[name] = o
	return o.number
}

func (s *state) leaveOrigin(p *plan, name string) {
	o, known := s.origins[name]
	if !known {
		return
	}
	o.frontends--
	s.origins[name] = o
	if o.frontends > 0 {
		return
	}
	delete(s.origins, name)
	p.origins.drop(o.number)
	s.originNumbers.giveBack(o.number)
	s.free[ebpf.MapOrigins]++
}

func (s *state) dropFrontend(p *plan, key service.Key) {
	old, known := s.frontends[key]
	if !known {
		return
	}
	now := frontend{row: ebpf.Frontend{Id: old.row.Id}}
	s.setSources(p, old, &now, nil)
	s.leaveOrigin(p, old.origin)
	p.frontends.drop(old.row.Key)
	p.leaving = p.leaving || key.Protocol == service.UDP
	s.free[ebpf.MapFrontends]++
	delete(s.frontends, key)
}
