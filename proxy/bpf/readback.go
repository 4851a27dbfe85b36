package bpf

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/service"
)

// Count is how many sockets or packets ended in one way.
type Count = ebpf.Count

// Outcomes counts how programs ended. It is safe for concurrent use.
func (b *Backend) Outcomes() ([]Count, error) { return b.path.Outcomes() }

// Flows counts the flows of the packet path, those that are over too as long as nobody
// needs their place. It is safe for concurrent use.
func (b *Backend) Flows() (int, error) {
	var r reader
	n := 0
	for _, row := range readAll[ebpf.FlowKey, ebpf.Flow](&r, b.path.Flows) {
		if row.Forward() {
			n++
		}
	}
	return n, r.err
}

// Report is what became of one socket or packet.
type Report = ebpf.Report

// Follow passes on what programs report, as ebpf.DataPath does.
func (b *Backend) Follow(ctx context.Context, see func(Report)) error { return b.path.Follow(ctx, see) }

// Watch has programs report more, as ebpf.DataPath does. It is safe for concurrent use.
func (b *Backend) Watch(ctx context.Context, see func(Report)) error { return b.path.Watch(ctx, see) }

// Connections says how many flows each Service port has got, as the maps have it. It
// is safe for concurrent use.
func (b *Backend) Connections() (map[service.Origin]uint64, error) {
	var r reader
	origins := readAll[uint32, ebpf.Origin](&r, b.path.Origins)
	frontends := readAll[ebpf.FrontendKey, ebpf.Frontend](&r, b.path.Frontends)
	if r.err != nil {
		return nil, r.err
	}
	out := map[service.Origin]uint64{}
	counted := map[uint32]bool{} // pools
	for _, f := range frontends {
		origin, err := parseOrigin(originName(origins[f.Origin]))
		if err != nil {
			continue // came or went while we read
		}
		for _, path := range f.Paths {
			if path.Verdict != ebpf.Forward || counted[path.Pool] {
				continue
			}
			counted[path.Pool] = true
			var turn ebpf.Turn
			if err := b.path.Turns.Lookup(path.Pool, &turn); err != nil {
				return nil, fmt.Errorf("read %s: %w", b.path.Turns, err)
			}
			out[origin] += turn.Taken + turn.Kept
		}
	}
	return out, nil
}

// Turns says how many flows of a class of senders a destination has led in turn, as the
// maps have it: the next one goes to the backend of that number, modulo how many there
// are. ok: it leads them so. It is safe for concurrent use.
func (b *Backend) Turns(key service.Key, class service.Class) (taken uint64, ok bool) {
	var f ebpf.Frontend
	if b.path.Frontends.Lookup(keyRow(key), &f) != nil {
		return 0, false
	}
	var turn ebpf.Turn
	path := f.Paths[classes[class]]
	if path.Verdict != ebpf.Forward || b.path.Turns.Lookup(path.Pool, &turn) != nil {
		return 0, false
	}
	return turn.Taken, true
}

// parseOrigin is the opposite of service.Origin.String.
func parseOrigin(text string) (service.Origin, error) {
	name, port, _ := strings.Cut(text, ":")
	namespace, name, ok := strings.Cut(name, "/")
	if !ok {
		return service.Origin{}, fmt.Errorf("%q is no name of a Service port", text)
	}
	return service.Origin{Service: service.Name{Namespace: namespace, Name: name}, Port: port}, nil
}

// Differences says in what way the maps do not say what the Table does, by Service.
func (b *Backend) Differences(_ context.Context, t *service.Table) (map[service.Name][]string, error) {
	d, err := read(&b.path.Maps)
	if err != nil {
		return nil, err
	}
	return d.differences(t), nil
}

func (d *dump) differences(t *service.Table) map[service.Name][]string {
	out := map[service.Name][]string{}
	kernel := map[service.Key]ebpf.Frontend{}
	for key, row := range d.frontends {
		kernel[keyOf(key)] = row
	}
	sources := map[uint32][]ebpf.SourceKey{}
	for key := range d.sources {
		sources[key.Frontend] = append(sources[key.Frontend], key)
	}
	pools := d.poolsByNumber(&plan{})
	for _, key := range sortedUnion(t.Frontends, kernel, service.Key.Compare) {
		f, wanted := t.Frontends[key]
		row, there := kernel[key]
		name := f.Origin.Service
		switch {
		case !there:
			out[name] = append(out[name], fmt.Sprintf("%s is missing", key))
		case !wanted:
			origin, _ := parseOrigin(originName(d.origins[row.Origin])) // without one, of nobody
			out[origin.Service] = append(out[origin.Service], fmt.Sprintf("%s is there and should not be", key))
		default:
			if !sameSources(row, f.Sources, sources) {
				out[name] = append(out[name], fmt.Sprintf("%s: the source ranges are others", key))
			}
			out[name] = append(out[name], pathDifferences(t, key, row, pools)...)
		}
		if len(out[name]) == 0 {
			delete(out, name)
		}
	}
	return out
}

func pathDifferences(t *service.Table, key service.Key, row ebpf.Frontend, pools map[uint32]pool) []string {
	var out []string
	for class, path := range t.Frontends[key].Paths {
		if service.Class(class) == service.FromPod && !podsKnown(t, key.Addr.Is6()) {
			path = t.Frontends[key].Paths[service.FromOutside] // see setFrontend
		}
		has := row.Paths[classes[service.Class(class)]]
		want, got := pathText(pathRow(path, 0), poolRows(0, t.Pools[path.Pool])), pathText(has, pools[has.Pool])
		if want != got {
			out = append(out, fmt.Sprintf("%s from %s: %s instead of %s", key, service.Class(class), got, want))
		}
	}
	return out
}

// pathText is what becomes of flows, in words.
func pathText(p ebpf.Path, to pool) string {
	for verdict, row := range verdicts {
		if row == p.Verdict && verdict != service.Forward {
			return verdict.String()
		}
	}
	words := []string{"to"}
	for _, b := range to.backends {
		words = append(words, endpointOf(b).String())
	}
	if len(to.backends) == 0 {
		words = append(words, "nobody")
	}
	if p.Masquerade != 0 {
		words = append(words, "masqueraded")
	}
	if to.affinity > 0 {
		words = append(words, "with affinity for", (time.Duration(to.affinity) * time.Second).String())
	}
	return strings.Join(words, " ")
}

func sameSources(row ebpf.Frontend, want []netip.Prefix, all map[uint32][]ebpf.SourceKey) bool {
	if row.Flags&ebpf.FrontendSources == 0 {
		return len(want) == 0
	}
	rows := all[hostOrder(row.Id)]
	return len(rows) == len(want) && !slices.ContainsFunc(want, func(p netip.Prefix) bool {
		return !slices.Contains(rows, sourceRow(row.Id, p))
	})
}
