package pool

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/ipam"
)

var (
	simSeed  = flag.Uint64("seed", 0, "run TestTwentyNodes with this seed only")
	simSeeds = flag.Uint64("seeds", 4, "run TestTwentyNodes with as many seeds")
)

// server is an API server as far as IPBlocks and Nodes go. It has one order of
// all writes, in which each makes a new version, and remembers what it was at
// each: whoever watches sees an earlier one.
type server struct {
	version int
	blocks  map[string]Block
	nodes   map[string]bool
	history []View // by version
	late    []func()
	changed bool // since the last look
}

func newServer() *server {
	s := &server{blocks: map[string]Block{}, nodes: map[string]bool{}}
	s.history = []View{{Blocks: map[string]Block{}, Nodes: map[string]bool{}}}
	return s
}

func (s *server) wrote() string {
	s.version++
	s.changed = true
	s.history = append(s.history, View{Blocks: maps.Clone(s.blocks), Nodes: maps.Clone(s.nodes)})
	return fmt.Sprint(s.version)
}

func (s *server) create(b Block) (Block, error) {
	if _, there := s.blocks[b.Name]; there {
		return Block{}, fmt.Errorf("409 AlreadyExists: %w", ErrConflict)
	}
	b.UID, b.Version = fmt.Sprintf("uid-%d", s.version+1), fmt.Sprint(s.version+1)
	s.blocks[b.Name] = b
	s.wrote()
	return b, nil
}

func (s *server) update(b Block) (Block, error) {
	now, there := s.blocks[b.Name]
	if !there || now.UID != b.UID || now.Version != b.Version {
		return Block{}, fmt.Errorf("404 or 409: %w", ErrConflict)
	}
	if b == now {
		return now, nil // a write that changes nothing makes no version
	}
	b.Version = fmt.Sprint(s.version + 1)
	s.blocks[b.Name] = b
	s.wrote()
	return b, nil
}

func (s *server) delete(b Block) error {
	now, there := s.blocks[b.Name]
	if !there || now.UID != b.UID || now.Version != b.Version {
		return fmt.Errorf("404 or 409: %w", ErrConflict)
	}
	delete(s.blocks, b.Name)
	s.wrote()
	return nil
}

func (s *server) setNode(name string, there bool) {
	delete(s.nodes, name)
	if there {
		s.nodes[name] = true
	}
	s.wrote()
}

// rows is ipam.Tx in memory.
type rows struct {
	keys   []string // sorted
	values map[string]string
}

func newRows() *rows { return &rows{values: map[string]string{}} }

func (m *rows) clone() *rows { return &rows{slices.Clone(m.keys), maps.Clone(m.values)} }

func (m *rows) Seek(key []byte) (k, v []byte, err error) {
	i, _ := slices.BinarySearch(m.keys, string(key))
	if i == len(m.keys) {
		return nil, nil, nil
	}
	return []byte(m.keys[i]), []byte(m.values[m.keys[i]]), nil
}

func (m *rows) Put(key, value []byte) error {
	if i, there := slices.BinarySearch(m.keys, string(key)); !there {
		m.keys = slices.Insert(m.keys, i, string(key))
	}
	m.values[string(key)] = string(value)
	return nil
}

func (m *rows) Delete(key []byte) error {
	if i, there := slices.BinarySearch(m.keys, string(key)); there {
		m.keys = slices.Delete(m.keys, i, i+1)
	}
	delete(m.values, string(key))
	return nil
}

const simNetwork = "macvlan"

// machine is a node of the simulation: its disk, and the process on it.
type machine struct {
	sim  *simulation
	name string
	on   bool
	boot int
	disk *rows
	pods []ipam.Owner
	next int // number of the next pod

	resume func() (struct{}, bool) // runs the process to its next step; nil: there is none
	kill   func()
	yield  func(struct{}) bool
	seen   int // version that the process's watch has shown
}

// killed ends a process wherever it is.
type killed struct{}

// step is where others get their turn, or the process its end.
func (m *machine) step() {
	if !m.yield(struct{}{}) {
		panic(killed{})
	}
}

// start starts the process: a Lessor that is called again and again. Its first
// list may come from a cache that is behind.
func (m *machine) start() {
	m.seen = max(m.seen-m.sim.IntN(10), 0)
	l := NewLessor(m.name, simAPI{m}, m, Options{
		Grace: time.Minute, Idle: 2 * time.Second, Forget: 24 * time.Hour,
		Claim: func() string { return fmt.Sprint(m.sim.Uint64()) },
	})
	m.resume, m.kill = iter.Pull(func(yield func(struct{}) bool) {
		defer func() {
			if cause := recover(); cause != nil && cause != (killed{}) {
				panic(cause)
			}
		}()
		m.yield = yield
		for {
			m.step()
			view := m.sim.api.history[m.seen]
			view.Synced, view.Pools = true, m.sim.pools
			_, err := l.Sync(context.Background(), view, m.sim.now)
			if err != nil && !errors.Is(err, errTimeout) {
				m.sim.t.Fatalf("%s: %v", m.name, err)
			}
		}
	})
}

func (m *machine) end() {
	if m.resume != nil {
		m.kill()
	}
	m.resume = nil
}

// Networks implements Stores.
func (m *machine) Networks() ([]string, error) { return []string{simNetwork}, nil }

// Update implements Stores. The process may be killed before or after.
func (m *machine) Update(_ context.Context, _ string, f func(tx ipam.Tx, boot string) error) error {
	m.step()
	err := m.transact(f)
	m.step()
	return err
}

func (m *machine) transact(f func(tx ipam.Tx, boot string) error) error {
	before := m.disk.clone()
	boot := fmt.Sprint(m.boot)
	err := ipam.Reclaim(m.disk, boot)
	if err == nil {
		err = f(m.disk, boot)
	}
	if err != nil {
		m.disk = before
		return err
	}
	m.sim.api.changed = m.sim.api.changed || !maps.Equal(before.values, m.disk.values)
	return nil
}

// addPod is an ADD of the plugin: it knows the store only.
func (m *machine) addPod() {
	owner := ipam.Owner{ContainerID: fmt.Sprintf("%s-%d", m.name, m.next), IfName: "eth0"}
	m.next++
	err := m.transact(func(tx ipam.Tx, boot string) error {
		sets, err := ipam.PoolSets(tx, boot, []string{"lan"})
		if err != nil {
			return err
		}
		_, err = ipam.Allocate(tx, sets, ipam.Request{Owner: owner, Now: m.sim.now, Boot: boot, Cooldown: time.Second})
		return err
	})
	if err == nil {
		m.pods = append(m.pods, owner)
	}
}

func (m *machine) removePod() {
	if len(m.pods) == 0 {
		return
	}
	i := m.sim.IntN(len(m.pods))
	owner := m.pods[i]
	m.pods = slices.Delete(m.pods, i, i+1)
	if err := m.transact(func(tx ipam.Tx, _ string) error { return ipam.Release(tx, owner, m.sim.now) }); err != nil {
		m.sim.t.Fatal(err)
	}
}

// want has the network want the pool.
func (m *machine) want() {
	if err := m.transact(func(tx ipam.Tx, _ string) error { return ipam.Want(tx, "lan", m.sim.now) }); err != nil {
		m.sim.t.Fatal(err)
	}
}

var errTimeout = errors.New("timeout")

// simAPI is the server as a process reaches it: over a network that loses
// requests and answers, and delays them.
type simAPI struct{ *machine }

func (a simAPI) Create(_ context.Context, b Block) (Block, error) {
	return through(a, func() (Block, error) { return a.sim.api.create(b) })
}

func (a simAPI) Update(_ context.Context, b Block) (Block, error) {
	return through(a, func() (Block, error) { return a.sim.api.update(b) })
}

func (a simAPI) Delete(_ context.Context, b Block) error {
	_, err := through(a, func() (Block, error) { return Block{}, a.sim.api.delete(b) })
	return err
}

func (a simAPI) Get(_ context.Context, name string) (b Block, ok bool, err error) {
	_, err = through(a, func() (Block, error) {
		b, ok = a.sim.api.blocks[name]
		return Block{}, nil
	})
	return b, ok, err
}

func (a simAPI) NodeExists(_ context.Context, name string) (exists bool, err error) {
	_, err = through(a, func() (Block, error) {
		exists = a.sim.api.nodes[name]
		return Block{}, nil
	})
	return exists, err
}

func through(a simAPI, request func() (Block, error)) (Block, error) {
	a.step()
	luck := 0
	if a.sim.faults {
		luck = a.sim.IntN(10)
	}
	switch luck {
	case 6: // it is lost
		return Block{}, errTimeout
	case 7, 8: // it is served later
		a.sim.api.late = append(a.sim.api.late, func() { _, _ = request() })
		return Block{}, errTimeout
	}
	b, err := request()
	a.step()
	if luck == 9 { // the answer is lost
		return Block{}, errTimeout
	}
	return b, err
}

// simulation has one thing happen after the other; a seed repeats it.
type simulation struct {
	*rand.Rand
	t        *testing.T
	now      time.Time
	api      *server
	pools    map[string]Pool
	machines []*machine
	faults   bool
	trace    []string
}

func newSimulation(t *testing.T, seed uint64, nodes int) *simulation {
	s := &simulation{Rand: rand.New(rand.NewPCG(seed, 1)), t: t, now: time.Unix(1_000_000, 0), api: newServer(), faults: true}
	lan, err := Spec{Subnet: "10.0.0.0/25", BlockSize: 30}.Parse("lan")
	if err != nil {
		t.Fatal(err)
	}
	s.pools = map[string]Pool{"lan": lan}
	for i := range nodes {
		m := &machine{sim: s, name: fmt.Sprintf("node-%02d", i), disk: newRows()}
		s.machines = append(s.machines, m)
		s.powerOn(m)
	}
	return s
}

func (s *simulation) powerOn(m *machine) {
	m.boot++
	m.on = true
	if !s.api.nodes[m.name] {
		s.api.setNode(m.name, true)
	}
	m.want()
	m.start()
}

// powerOff: nothing of the machine runs any more.
func (s *simulation) powerOff(m *machine) {
	m.end()
	m.on, m.pods = false, nil
}

// event is something that happens to a cluster.
func (s *simulation) event() {
	m := s.machines[s.IntN(len(s.machines))]
	s.now = s.now.Add(time.Duration(s.IntN(1000)) * time.Millisecond)
	switch what := s.IntN(1000); {
	case what < 5 && m.on:
		s.note("%s: SIGKILL", m.name)
		m.end()
	case what < 8 && m.on:
		s.note("%s: power off", m.name)
		s.powerOff(m)
		if s.IntN(2) == 0 {
			s.note("%s: Node removed", m.name)
			s.api.setNode(m.name, false)
		}
	case what < 20:
		if n := len(s.api.late); n > 0 {
			i := s.IntN(n)
			s.note("a late request is served")
			s.api.late[i]()
			s.api.late = slices.Delete(s.api.late, i, i+1)
		}
	case what < 40 && m.on:
		for range 1 + s.IntN(6) {
			m.addPod()
		}
	case what < 60 && m.on:
		for range 1 + s.IntN(6) {
			m.removePod()
		}
	case what < 200:
		if m.seen < s.api.version { // the watch shows some more
			m.seen += 1 + s.IntN(s.api.version-m.seen)
		}
	default:
		s.turn(m)
	}
}

// turn gives a machine its turn: its process takes a step, or it is started, or
// the machine is.
func (s *simulation) turn(m *machine) {
	switch {
	case m.resume != nil:
		m.resume()
	case m.on:
		s.note("%s: start", m.name)
		m.start()
	case s.IntN(50) == 0 || !s.faults:
		s.note("%s: power on", m.name)
		s.powerOn(m)
	}
}

func (s *simulation) note(format string, args ...any) {
	s.trace = append(s.trace, s.now.Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// check looks at what must be so at every moment.
func (s *simulation) check() {
	if !s.api.changed {
		return
	}
	s.api.changed = false
	holder := map[netip.Prefix]string{}
	for _, m := range s.machines {
		if !m.on {
			continue
		}
		grants, err := ipam.Grants(m.disk, fmt.Sprint(m.boot))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, g := range grants {
			if other, twice := holder[g.Block]; twice {
				s.fail("block %s is granted to %s and to %s", g.Block, other, m.name)
			}
			holder[g.Block] = m.name
			if object := s.api.blocks[BlockName(g.Block)]; object.Node != m.name {
				s.fail("block %s is granted to %s, and its object says %q", g.Block, m.name, object.Node)
			}
		}
		for _, owner := range m.pods {
			s.checkPod(m, owner, grants)
		}
	}
}

// checkPod: no pod has an address of a block that was given back.
func (s *simulation) checkPod(m *machine, owner ipam.Owner, grants []ipam.Grant) {
	lease, err := ipam.Held(m.disk, owner)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, addr := range lease.Addrs {
		if !slices.ContainsFunc(grants, func(g ipam.Grant) bool { return g.Block.Contains(addr) }) {
			s.fail("%s of %s has %s, which is in no block of its node", owner, m.name, addr)
		}
	}
}

func (s *simulation) fail(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\nwhat happened:\n%s", fmt.Sprintf(format, args...), strings.Join(s.trace[max(0, len(s.trace)-40):], "\n"))
}

// settle has the cluster come to rest, with nothing going wrong any more.
func (s *simulation) settle() {
	for _, request := range s.api.late {
		request()
	}
	s.api.late, s.faults = nil, false
	for range 4000 {
		for _, m := range s.machines {
			m.seen = s.api.version
			s.turn(m)
		}
		s.now = s.now.Add(100 * time.Millisecond)
		s.check()
	}
}

// checkSettled: what is leased is used, and nobody lacks what is free.
func (s *simulation) checkSettled() {
	granted := 0
	for _, m := range s.machines {
		grants, err := ipam.Grants(m.disk, fmt.Sprint(m.boot))
		if err != nil {
			s.t.Fatal(err)
		}
		granted += len(grants)
		if len(grants) == 0 && len(s.api.blocks) < int(s.pools["lan"].blocks()) {
			s.fail("%s has no block, and %d of %d are leased", m.name, len(s.api.blocks), s.pools["lan"].blocks())
		}
	}
	if granted != len(s.api.blocks) {
		s.fail("%d blocks are leased and %d are granted", len(s.api.blocks), granted)
	}
}

// TestTwentyNodes: twenty nodes share a pool of 32 blocks while requests are
// lost, late, or answered to nobody, watches are behind, processes are killed
// between any two steps, machines are switched off and on, and Nodes removed. At
// no moment is a block granted by two nodes, or one that its object does not say
// is the node's; and when nothing goes wrong any more all blocks are of use.
func TestTwentyNodes(t *testing.T) {
	first, last := uint64(1), *simSeeds
	if *simSeed != 0 {
		first, last = *simSeed, *simSeed
	}
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			s := newSimulation(t, seed, 20)
			defer func() {
				for _, m := range s.machines {
					m.end()
				}
			}()
			for range 20_000 {
				s.event()
				s.check()
			}
			s.settle()
			s.checkSettled()
			if s.api.version < 200 {
				t.Errorf("only %d writes: the test tests little", s.api.version)
			}
		})
	}
}
