// Package bpf compiles the Table of proxy/service into the maps of package ebpf
// and keeps them equal to it.
//
//	Table, Change ──(state.update)──▶ plan ──(apply)──▶ maps
//
// render.go, plan.go and adopt.go are pure: Table in, rows out. apply.go and this
// file have the effects. A round writes only rows that changed, each map's by one
// system call, whatever the number of Services.
package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/vishvananda/netns"

	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/service"
)

// Config says where the data path lives and how large its maps are.
type Config = ebpf.Config

// DefaultRoot is where everything is pinned.
const DefaultRoot = ebpf.DefaultRoot

// ErrInUse is that another process programs the node.
var ErrInUse = ebpf.ErrInUse

// Try says what the kernel lacks of what New needs, and leaves it as it is.
func Try(cgroupRoot string) error { return ebpf.Try(cgroupRoot) }

// CanEndSockets says what the kernel lacks of what it takes to end the sockets of
// clients that are connected to a backend which is gone.
func CanEndSockets() error { return ebpf.CanEndSockets() }

// Strangers are the names of programs of others that lead sockets to endpoints, too.
func Strangers(cgroupRoot string) ([]string, error) { return ebpf.Strangers(cgroupRoot) }

// MapNames are the maps whose size may be said.
func MapNames() []string {
	return []string{
		ebpf.MapFrontends, ebpf.MapPools, ebpf.MapBackends, ebpf.MapMembers, ebpf.MapOrigins, ebpf.MapSources,
		ebpf.MapLeaving, ebpf.MapAffinities, ebpf.MapDatagrams, ebpf.MapFlows,
	}
}

// Backend programs the node in whose network namespace New ran. It is for one
// goroutine, but where a method says otherwise.
type Backend struct {
	path      *ebpf.DataPath
	config    Config
	ns        netns.NsHandle // the node's
	have      *state         // nil: unknown, the maps must be read
	left      bool           // something did not fit: it is tried again at each Sync
	published bool
	written   int  // rows by the last Sync
	stale     bool // sockets may be connected to backends that are gone
	holds     bool // netfilter is held to flows of its own, see conntrack.Hold
	looks     int  // calls of Intact
	cannotEnd bool // them; it was said
	leaving   leaving
}

// New loads the programs. Nothing is served before the first Sync; what an earlier
// process left goes on until then. The error says what the kernel lacks, or wraps
// ErrInUse.
func New(config Config) (*Backend, error) {
	path, err := ebpf.Load(config)
	if err != nil {
		return nil, err
	}
	ns, err := netns.Get()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open network namespace: %w", err), path.Close())
	}
	return &Backend{path: path, config: config, ns: ns, stale: true, holds: true}, nil
}

// inNode calls f in the network namespace of the node.
func (b *Backend) inNode(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		err := netns.Set(b.ns)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// String says what is in use, for logs.
func (b *Backend) String() string { return b.path.String() }

// Sync makes the maps agree with t. change says how t differs from the Table of the
// Sync before. After an error of the kernel the next Sync reads back what the maps
// hold and mends what differs, whatever its change says; so does the first one.
//
// Services that do not fit into the maps are left out, alone, and named by a
// *service.RefusedError.
func (b *Backend) Sync(_ context.Context, t *service.Table, change service.Change) error {
	b.written = 0
	if b.have == nil {
		if err := b.read(t); err != nil {
			return err
		}
		change = b.have.everything(t)
	} else if b.left {
		change = b.have.everything(t)
	}
	if change.Node {
		pods := service.Table{PodInterfaces: slices.Clone(t.PodInterfaces)}
		if err := b.path.SetPodLinks(pods.PodInterface); err != nil {
			b.have = nil
			return fmt.Errorf("find the interfaces of pods: %w", err)
		}
	}
	idle := len(b.have.frontends) == 0 && !b.path.Replaces()
	p := b.have.update(t, change)
	err := b.settle()
	if err == nil {
		err = b.program(t, p, idle)
	}
	if err != nil {
		b.have = nil
		return err
	}
	b.left = len(p.left) > 0
	return errors.Join(p.err(), b.endStale(t, p))
}

// program tells the kernel. idle: no programs lead anything until now.
func (b *Backend) program(t *service.Table, p *plan, idle bool) error {
	switch {
	case b.published:
		return b.apply(p)
	case idle:
		return b.begin(t, p)
	}
	if err := b.apply(p); err != nil {
		return err
	}
	return b.publish()
}

func (b *Backend) publish() error {
	err := b.inNode(b.path.Publish)
	b.published = err == nil
	return err
}

// endStale ends the sockets that are connected to a backend that does not serve
// their Service any more. Only UDP's, and those of Services that want it: other TCP
// connections may finish what they have begun.
func (b *Backend) endStale(t *service.Table, p *plan) error {
	b.stale = b.stale || p.leaving
	if !b.stale || b.cannotEnd {
		return nil
	}
	var r reader
	connected := readAll[uint64, ebpf.Peer](&r, b.path.Connected)
	if r.err != nil {
		return r.err
	}
	maps.DeleteFunc(connected, func(_ uint64, peer ebpf.Peer) bool { return mayGoOn(t, peer) })
	err := ebpf.EndSockets(connected, openNamespaces)
	b.cannotEnd = errors.Is(err, ebpf.ErrCannotEnd)
	if err != nil {
		return fmt.Errorf("end sockets that are connected to backends which are gone: %w", err)
	}
	b.stale = false
	return nil
}

func (b *Backend) read(t *service.Table) error {
	d, err := read(&b.path.Maps)
	if err != nil {
		return err
	}
	have, garbage := adopt(d, t, sizes(&b.path.Maps))
	if err := b.apply(garbage); err != nil {
		return err
	}
	b.have = have
	return nil
}

func (b *Backend) apply(p *plan) error {
	n, err := p.apply(&b.path.Maps)
	b.written += n
	return err
}

func sizes(m *ebpf.Maps) map[string]int {
	return map[string]int{
		ebpf.MapFrontends: int(m.Frontends.MaxEntries()),
		ebpf.MapPools:     int(min(m.Pools.MaxEntries(), m.Turns.MaxEntries())),
		ebpf.MapBackends:  int(m.Backends.MaxEntries()),
		ebpf.MapMembers:   int(m.Members.MaxEntries()),
		ebpf.MapOrigins:   int(m.Origins.MaxEntries()),
		ebpf.MapSources:   int(m.Sources.MaxEntries()),
		ebpf.MapLeaving:   int(m.Leaving.MaxEntries()),
	}
}

// Intact looks whether others have removed pins or detached programs, and once a minute
// whether they have removed or changed rows of the Table's maps. If so, the next Sync
// mends that.
func (b *Backend) Intact() (bool, error) {
	if !b.published || b.have == nil {
		return true, nil
	}
	b.looks++
	ok, err := b.path.Intact()
	if !ok && err == nil {
		b.published, b.have = false, nil
	}
	if !ok || err != nil {
		return ok, err
	}
	if err := errors.Join(b.inNode(b.release), b.follow()); err != nil {
		return true, err
	}
	ok, err = b.rowsIntact()
	if !ok {
		b.have = nil
	}
	return ok, err
}

// Cleanup removes everything that is the backend's from the kernel. The backend is
// of no use afterwards.
func (b *Backend) Cleanup(context.Context) error {
	return errors.Join(b.inNode(conntrack.Release), b.Close(), ebpf.Remove(b.config.Root))
}

// Close ends the use of the maps. What is programmed stays.
func (b *Backend) Close() error {
	b.leaving.close()
	return errors.Join(b.path.Close(), b.ns.Close())
}
