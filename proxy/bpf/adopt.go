package bpf

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/service"
)

// dump is what is in the maps.
type dump struct {
	frontends map[ebpf.FrontendKey]ebpf.Frontend
	pools     map[uint32]ebpf.Pool // those that frontends or backends name
	backends  map[ebpf.BackendKey]ebpf.Backend
	members   map[ebpf.MemberKey]uint32
	origins   map[uint32]ebpf.Origin
	sources   map[ebpf.SourceKey]uint32
	nodeAddrs map[ebpf.Addr]ebpf.NodeAddr
	podCIDRs  map[ebpf.PrefixKey]uint32
}

// adopt makes out of what an earlier process left in the maps, and of the Table,
// the state from which to go on: a pool of the Table is the one to which the row of
// a frontend leads that the Table leads there. What belongs to nothing is garbage,
// to be removed before anything is written.
func adopt(d *dump, t *service.Table, size map[string]int) (*state, *plan) {
	s, garbage := newState(size), &plan{}
	s.nodeAddrs, s.podCIDRs = d.nodeAddrs, d.podCIDRs
	s.adoptOrigins(d, garbage)
	s.adoptFrontends(d, garbage)
	s.adoptPools(d, t, garbage)
	return s, garbage
}

func (s *state) adoptOrigins(d *dump, garbage *plan) {
	for number, row := range d.origins {
		name := originName(row)
		if _, twice := s.origins[name]; twice {
			garbage.origins.drop(number)
			continue
		}
		s.origins[name] = origin{number: number}
	}
}

func (s *state) adoptFrontends(d *dump, garbage *plan) {
	allowed := map[uint32][]ebpf.SourceKey{}
	for row := range d.sources {
		id := hostOrder(row.Frontend)
		allowed[id] = append(allowed[id], row)
	}
	var ids []uint32
	for key, row := range d.frontends {
		if row.Key != key || keyRow(keyOf(key)) != key {
			garbage.frontends.drop(key) // not ours, or to programs none
			continue
		}
		f := frontend{row: row, origin: originName(d.origins[row.Origin])}
		if row.Id != 0 {
			f.sources = allowed[row.Id]
			delete(allowed, row.Id)
			ids = append(ids, row.Id)
		}
		if o, ok := s.origins[f.origin]; ok {
			o.frontends++
			s.origins[f.origin] = o
		}
		s.frontends[keyOf(key)] = f
		s.free[ebpf.MapSources] -= len(f.sources)
	}
	for _, rows := range allowed {
		garbage.sources.gone = append(garbage.sources.gone, rows...)
	}
	var inUse []uint32
	for name, o := range s.origins {
		if o.frontends == 0 {
			garbage.origins.drop(o.number)
			delete(s.origins, name)
			continue
		}
		inUse = append(inUse, o.number)
	}
	s.originNumbers, s.frontendNumbers = numbersFrom(0, inUse), numbersFrom(1, ids)
	s.free[ebpf.MapFrontends] -= len(s.frontends)
	s.free[ebpf.MapOrigins] -= len(s.origins)
}

func (s *state) adoptPools(d *dump, t *service.Table, garbage *plan) {
	found := d.poolsByNumber(garbage)
	inUse := slices.Collect(maps.Keys(found))
	for _, p := range found {
		s.free[ebpf.MapBackends] -= len(p.backends)
		s.free[ebpf.MapMembers] -= len(p.members)
	}
	s.free[ebpf.MapPools] -= len(found)
	for _, key := range sortedUnion(t.Frontends, map[service.Key]frontend{}, service.Key.Compare) {
		f, known := s.frontends[key]
		if !known {
			continue
		}
		for class, path := range t.Frontends[key].Paths {
			row := f.row.Paths[classes[service.Class(class)]]
			p, there := found[row.Pool]
			if path.Verdict == service.Forward && row.Verdict == ebpf.Forward && there && !has(s.pools, path.Pool) {
				s.pools[path.Pool] = p
				delete(found, row.Pool)
			}
		}
	}
	for number, p := range found {
		s.pools[nobodys(number)] = p
	}
	s.poolNumbers = numbersFrom(0, inUse)
}

// nobodys names a pool that is none of the Table's: it is dropped as those are that
// were.
func nobodys(number uint32) service.PoolID {
	return service.PoolID{Origin: service.Origin{Port: fmt.Sprintf("nobody's %d", number)}}
}

// poolsByNumber puts the rows of pools together.
func (d *dump) poolsByNumber(garbage *plan) map[uint32]pool {
	found := map[uint32]pool{}
	for number, row := range d.pools {
		p := pool{number: number, now: row.Now, affinity: row.Affinity, flags: row.Flags}
		for i := range row.Now.Count {
			b := d.backends[ebpf.BackendKey{Generation: row.Now.Id, Index: i}]
			p.backends = append(p.backends, ebpf.Endpoint{Addr: b.Addr, Port: b.Port})
		}
		if row.Flags&ebpf.PoolMembers != 0 {
			p.members = map[ebpf.Endpoint]uint32{}
		}
		found[number] = p
	}
	for key, is := range d.members {
		p, ok := found[key.Generation/2]
		if ok && p.now.Id == key.Generation && p.members != nil {
			p.members[key.Backend] = is
		} else {
			garbage.members.drop(key)
		}
	}
	for key := range d.backends {
		if p, ok := found[key.Generation/2]; !ok || p.now.Id != key.Generation || key.Index >= p.now.Count {
			garbage.backends.drop(key)
		}
	}
	return found
}

// hostOrder turns a number in network byte order round.
func hostOrder(n uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, n))
}
