package bpf

import (
	"errors"
	"fmt"

	cilium "github.com/cilium/ebpf"

	"github.com/fairlead/fairlead/ebpf"
)

// apply tells the kernel: first what is new, so that no row names another that is
// not there, then what goes. It says how many rows it wrote or removed.
func (p *plan) apply(m *ebpf.Maps) (int, error) {
	var w writer
	write(&w, m.Backends, p.backends)
	write(&w, m.Members, p.members)
	write(&w, m.Turns, p.turns)
	write(&w, m.Pools, p.pools)
	write(&w, m.Origins, p.origins)
	write(&w, m.Sources, p.sources)
	write(&w, m.PodCidrs, p.podCIDRs)
	write(&w, m.NodeAddrs, p.nodeAddrs)
	write(&w, m.Frontends, p.frontends)

	remove(&w, m.Frontends, p.frontends)
	remove(&w, m.NodeAddrs, p.nodeAddrs)
	remove(&w, m.PodCidrs, p.podCIDRs)
	remove(&w, m.Sources, p.sources)
	remove(&w, m.Origins, p.origins)
	write(&w, m.Pools, rows[uint32, ebpf.Pool]{keys: p.pools.gone, values: make([]ebpf.Pool, len(p.pools.gone))})
	remove(&w, m.Members, p.members)
	remove(&w, m.Backends, p.backends)
	return w.rows, w.err
}

// writer stops at the first error.
type writer struct {
	rows int
	err  error
}

// write puts rows by one system call.
func write[K comparable, V any](w *writer, m *cilium.Map, r rows[K, V]) {
	if w.err != nil || len(r.keys) == 0 {
		return
	}
	w.rows += len(r.keys)
	if len(r.keys) == 1 {
		w.err = m.Put(&r.keys[0], &r.values[0])
	} else {
		_, w.err = m.BatchUpdate(r.keys, r.values, nil)
	}
	if w.err != nil {
		w.err = fmt.Errorf("write %d rows of %s: %w", len(r.keys), m, w.err)
	}
}

// remove takes rows out. That one is gone already is no error.
func remove[K comparable, V any](w *writer, m *cilium.Map, r rows[K, V]) {
	if w.err != nil || len(r.gone) == 0 {
		return
	}
	w.rows += len(r.gone)
	for left := r.gone; len(left) > 0; {
		n, err := m.BatchDelete(left, nil)
		if err == nil {
			return
		}
		if !errors.Is(err, cilium.ErrKeyNotExist) {
			w.err = fmt.Errorf("remove %d rows of %s: %w", len(r.gone), m, err)
			return
		}
		left = left[n+1:]
	}
}

// read asks the kernel what the maps hold.
func read(m *ebpf.Maps) (*dump, error) {
	var r reader
	d := &dump{
		frontends: readAll[ebpf.FrontendKey, ebpf.Frontend](&r, m.Frontends),
		backends:  readAll[ebpf.BackendKey, ebpf.Backend](&r, m.Backends),
		members:   readAll[ebpf.MemberKey, uint32](&r, m.Members),
		origins:   readAll[uint32, ebpf.Origin](&r, m.Origins),
		sources:   iterate[ebpf.SourceKey, uint32](&r, m.Sources),
		nodeAddrs: readAll[ebpf.Addr, ebpf.NodeAddr](&r, m.NodeAddrs),
		podCIDRs:  iterate[ebpf.PrefixKey, uint32](&r, m.PodCidrs),
		pools:     map[uint32]ebpf.Pool{},
	}
	for number := range d.poolNumbers() {
		var row ebpf.Pool
		if r.err != nil {
			break
		}
		err := m.Pools.Lookup(number, &row)
		if errors.Is(err, cilium.ErrKeyNotExist) {
			continue // the row that names it is not ours
		}
		if err != nil {
			r.err = fmt.Errorf("read %s: %w", m.Pools, err)
		}
		d.pools[number] = row
	}
	return d, r.err
}

// poolNumbers are those that frontends and backends name.
func (d *dump) poolNumbers() map[uint32]bool {
	numbers := map[uint32]bool{}
	for _, f := range d.frontends {
		for _, path := range f.Paths {
			if path.Verdict == ebpf.Forward {
				numbers[path.Pool] = true
			}
		}
	}
	for key := range d.backends {
		numbers[key.Generation/2] = true
	}
	return numbers
}

// reader stops at the first error.
type reader struct{ err error }

// batchRows is how many rows are read by one system call.
const batchRows = 4096

// readAll reads a hash map.
func readAll[K comparable, V any](r *reader, m *cilium.Map) map[K]V {
	out := map[K]V{}
	each(r, m, func(k K, v V) { out[k] = v })
	return out
}

// each calls see with every row of a hash map or an array.
func each[K comparable, V any](r *reader, m *cilium.Map, see func(K, V)) {
	if r.err != nil {
		return
	}
	var cursor cilium.MapBatchCursor
	keys, values := make([]K, batchRows), make([]V, batchRows)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			see(keys[i], values[i])
		}
		if errors.Is(err, cilium.ErrKeyNotExist) {
			return // that was the end
		}
		if err != nil {
			r.err = fmt.Errorf("read %s: %w", m, err)
			return
		}
	}
}

// iterate reads a map of prefixes, of which there are few: kernels before 5.16
// cannot read those in one go.
func iterate[K comparable, V any](r *reader, m *cilium.Map) map[K]V {
	out := map[K]V{}
	if r.err != nil {
		return out
	}
	var k K
	var v V
	each := m.Iterate()
	for each.Next(&k, &v) {
		out[k] = v
	}
	if err := each.Err(); err != nil {
		r.err = fmt.Errorf("read %s: %w", m, err)
	}
	return out
}
