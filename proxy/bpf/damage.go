package bpf

import (
	"maps"

	cilium "github.com/cilium/ebpf"

	"github.com/fairlead/fairlead/ebpf"
)

// What others do to rows of the maps: a program that runs does not notice, so that all
// are read back now and then.

// looksUntilRead is how many calls of Intact, of which there are four a second, go by
// before all rows are read back: a minute. The maps have their turns in several calls,
// so that no news waits for all of them.
const looksUntilRead = 240

// rowsIntact says whether the maps whose turn it is hold what was written to them.
func (b *Backend) rowsIntact() (bool, error) {
	s, m, r := b.have, &b.path.Maps, &reader{}
	intact := true
	switch b.looks % looksUntilRead {
	case 0:
		intact = s.frontendsIntact(r, m)
	case 1:
		intact = s.poolsIntact(r, m)
	case 2:
		intact = s.originsIntact(r, m)
	case 3:
		intact = s.nodeIntact(r, m)
	case 4:
		return true, b.path.Refresh()
	}
	return intact || r.err != nil, r.err
}

func (s *state) frontendsIntact(r *reader, m *ebpf.Maps) bool {
	allowed := map[ebpf.SourceKey]uint32{}
	for _, f := range s.frontends {
		for _, row := range f.sources {
			allowed[row] = 1
		}
	}
	return same(r, m.Frontends, len(s.frontends), func(k ebpf.FrontendKey, row ebpf.Frontend) bool {
		f, ok := s.frontends[keyOf(k)]
		return ok && f.row == row && row.Key == k
	}) && maps.Equal(allowed, iterate[ebpf.SourceKey, uint32](r, m.Sources))
}

func (s *state) poolsIntact(r *reader, m *ebpf.Maps) bool {
	pools := make([]pool, s.poolNumbers.next) // by number
	backends, members := 0, 0
	for _, p := range s.pools {
		pools[p.number] = p
		backends += len(p.backends)
		members += len(p.members)
	}
	at := func(generation uint32) (pool, bool) {
		number := generation / 2
		if number >= uint32(len(pools)) {
			return pool{}, false
		}
		return pools[number], pools[number].now.Id == generation
	}
	return same(r, m.Pools, int(m.Pools.MaxEntries()), func(number uint32, row ebpf.Pool) bool {
		unused := number >= uint32(len(pools)) || pools[number].now == ebpf.Generation{}
		return unused || pools[number].row() == row
	}) && same(r, m.Backends, backends, func(k ebpf.BackendKey, row ebpf.Backend) bool {
		p, ok := at(k.Generation)
		return ok && k.Index < uint32(len(p.backends)) && row == backendRow(k.Generation, p.backends[k.Index])
	}) && same(r, m.Members, members, func(k ebpf.MemberKey, is uint32) bool {
		p, ok := at(k.Generation)
		return ok && has(p.members, k.Backend) && p.members[k.Backend] == is
	})
}

func (s *state) originsIntact(r *reader, m *ebpf.Maps) bool {
	return same(r, m.Origins, len(s.origins), func(number uint32, row ebpf.Origin) bool {
		o, ok := s.origins[originName(row)]
		return ok && o.number == number
	})
}

func (s *state) nodeIntact(r *reader, m *ebpf.Maps) bool {
	return maps.Equal(s.nodeAddrs, readAll[ebpf.Addr, ebpf.NodeAddr](r, m.NodeAddrs)) &&
		maps.Equal(s.podCIDRs, iterate[ebpf.PrefixKey, uint32](r, m.PodCidrs))
}

// same says whether a map has so many rows, and all of them are right.
func same[K comparable, V any](r *reader, m *cilium.Map, rows int, right func(K, V) bool) bool {
	all := true
	each(r, m, func(k K, v V) {
		all = all && right(k, v)
		rows--
	})
	return all && rows == 0
}
