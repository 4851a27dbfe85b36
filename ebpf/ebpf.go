// Package ebpf is the data path in the kernel: programs in C (folder c, compiled
// by bpf2go), the maps that they read, and how both get there and stay.
//
//	Load ──▶ maps, programs ──(the caller fills the maps)──▶ Publish ──▶ pins, links
//
// Maps, links and programs are pinned under a folder of a bpf file system: they
// outlive the process, and the next one adopts them. Maps whose layout or size is
// another than before are made anew, and what was in the old ones is carried over,
// before the programs flip to them.
//
// It knows rows, not Services: what is in the Table's maps comes from proxy/bpf.
// It imports nothing else of the project.
package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ebpf/pins"
)

// DefaultRoot is where everything is pinned.
const DefaultRoot = pins.DefaultRoot

// Config says where the data path lives.
type Config struct {
	// Root is the folder of the pins. It, and a bpf file system for it, are made
	// where they are missing.
	Root string
	// CgroupRoot is the cgroup below which sockets are seen, a folder of cgroup v2;
	// "" is the root of all.
	CgroupRoot string
	// Clsact has programs that see packets attached as filters of clsact also where the
	// kernel has tcx (6.6), whose programs run before all filters.
	Clsact bool
	// Sizes are how many rows maps have by name, if not as many as by default.
	Sizes map[string]uint32
}

// DataPath is the programs and their maps.
type DataPath struct {
	Maps

	config   Config
	lock     *os.File // the folder of the pins
	programs bpfPrograms
	// Variables of the programs, see LookOn and StandBy.
	lookedAtUntil, standsBy *ebpf.Variable
	links                   *links
	watchers                watchers
	maps                    map[string]*ebpf.Map // all that outlive a program
	fresh                   map[string]bool      // those that were made anew
	old                     map[string]*ebpf.Map // in the place of which they were made
	unfinished              map[string]*ebpf.Map // that a process made which came to no end: see pinNext
	specs                   map[string]*ebpf.MapSpec
}

// Maps are those that user space fills or reads.
type Maps = bpfMaps

// tableMaps are filled from one Table and refer to each other: if one must be made
// anew, all are. All others are of flows, each for itself.
var tableMaps = []string{
	bpfMapFrontends, bpfMapBackends, bpfMapMembers, bpfMapPools, bpfMapTurns,
	bpfMapOrigins, bpfMapSources, bpfMapNodeAddrs, bpfMapPodCidrs,
}

// Load makes maps and programs, for the node whose network namespace is that of
// the calling thread. No packet or socket is translated before Publish. The error says
// what the kernel lacks, or wraps ErrInUse.
func Load(config Config) (*DataPath, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, err
	}
	return load(config, spec)
}

func load(config Config, spec *ebpf.CollectionSpec) (*DataPath, error) {
	if err := rlimit.RemoveMemlock(); err != nil { // it asks the kernel for a map first
		return nil, fmt.Errorf("allow memory for maps: %w", notAllowed(err))
	}
	if config.CgroupRoot == "" {
		var err error
		if config.CgroupRoot, err = findCgroupRoot(); err != nil {
			return nil, err
		}
	}
	if _, err := cgroupID(config.CgroupRoot); err != nil {
		return nil, err
	}
	lock, err := openRoot(config.Root)
	if err != nil {
		return nil, err
	}
	d := &DataPath{
		config: config, lock: lock,
		fresh: map[string]bool{}, old: map[string]*ebpf.Map{}, unfinished: map[string]*ebpf.Map{},
	}
	if err := d.load(spec); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

func (d *DataPath) load(spec *ebpf.CollectionSpec) error {
	for name, size := range d.config.Sizes {
		spec.Maps[name].MaxEntries = size
	}
	spec.Maps[bpfMapTurns].MaxEntries = spec.Maps[bpfMapPools].MaxEntries
	spec.Maps[bpfMapReplies].MaxEntries = spec.Maps[bpfMapDatagrams].MaxEntries
	if err := setConstants(spec.Variables); err != nil {
		return err
	}
	d.specs = spec.Maps
	if err := d.adoptMaps(); err != nil {
		return err
	}
	var objects bpfObjects
	if err := spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{MapReplacements: d.maps}); err != nil {
		return notLoaded(spec, err)
	}
	d.Maps, d.programs = objects.bpfMaps, objects.bpfPrograms
	d.lookedAtUntil, d.standsBy = objects.LookedAtUntil, objects.StandsBy
	if err := d.writeShifts(); err != nil {
		return err
	}
	var err error
	if d.links, err = openLinks(&d.programs, &d.Maps, pins.Links(d.config.Root)); err != nil {
		return err
	}
	d.links.clsact = d.config.Clsact
	if len(d.fresh) < len(d.maps) {
		return nil // an earlier process could attach
	}
	return d.canAttach()
}

// setConstants says what programs are told once, at load.
func setConstants(variables map[string]*ebpf.VariableSpec) error {
	cookie, err := pins.NetnsCookie()
	if err != nil {
		return err
	}
	ports, err := masqueradePorts()
	if err != nil {
		return err
	}
	flags, err := fibFlags()
	if err != nil {
		return err
	}
	return errors.Join(
		variables[bpfVarNodeNetns].Set(cookie),
		variables[bpfVarMasqueradePorts].Set(ports),
		variables[bpfVarFibFlags].Set(flags))
}

// adoptMaps opens the pinned maps, and makes those that there are not.
func (d *DataPath) adoptMaps() error {
	d.maps = map[string]*ebpf.Map{}
	for name, spec := range d.specs {
		if strings.HasPrefix(name, ".") {
			continue // of one program only
		}
		m, err := d.openMap("maps", name)
		switch {
		case err != nil:
			return err
		case m == nil:
			d.fresh[name] = true
		case spec.Compatible(m) == nil && sameRows(m, spec):
			d.maps[name] = m
		default:
			d.old[name], d.fresh[name] = m, true
		}
		if m, err = d.openMap(nextMaps, name); err != nil {
			return err
		}
		if m != nil {
			d.unfinished[name] = m
		}
	}
	for _, name := range tableMaps {
		if d.fresh[name] {
			d.replaceTable()
			break
		}
	}
	for name := range d.fresh {
		if err := d.makeMap(name); err != nil {
			return err
		}
	}
	return d.carryTable()
}

// openMap opens a pinned map, nil if there is none.
func (d *DataPath) openMap(folder, name string) (*ebpf.Map, error) {
	path := d.pin(folder, name)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open map %s: %w", path, err)
	}
	return m, nil
}

func (d *DataPath) makeMap(name string) error {
	m, err := ebpf.NewMap(d.specs[name])
	if err != nil {
		return fmt.Errorf("make map %s of %d rows: %w", name, d.specs[name].MaxEntries, err)
	}
	d.maps[name] = m
	return nil
}

// replaceTable has all of the Table's maps made anew: the programs that run read
// those that there are, and must not see half a change.
func (d *DataPath) replaceTable() {
	for _, name := range tableMaps {
		if m, ok := d.maps[name]; ok {
			d.old[name] = m
			delete(d.maps, name)
		}
		d.fresh[name] = true
	}
}

// carryTable gives new maps of the Table the rows of the old ones: thereby pools keep
// their numbers, by which flows and affinities know them, and their turns. Rows that do
// not fit are no loss: then the maps begin empty, as the caller fills them.
func (d *DataPath) carryTable() error {
	for _, name := range tableMaps {
		old, ok := d.old[name]
		if !ok || (old.MaxEntries() <= d.maps[name].MaxEntries() && carry(old, d.maps[name], d.specs[name]) == nil) {
			continue
		}
		for _, name := range tableMaps {
			_ = d.maps[name].Close()
			if err := d.makeMap(name); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// carryFlows gives maps of flows the rows of those in whose place they come.
func (d *DataPath) carryFlows() error {
	for _, maps := range []map[string]*ebpf.Map{d.unfinished, d.old} {
		for name, from := range maps {
			if err := d.carryFlowsOf(name, from); err != nil {
				return err
			}
		}
	}
	return d.noteFlows()
}

func (d *DataPath) carryFlowsOf(name string, from *ebpf.Map) error {
	if slices.Contains(tableMaps, name) || !carries(from.Type()) || from.Type() != d.maps[name].Type() {
		return nil
	}
	err := carry(from, d.maps[name], d.specs[name])
	if err != nil && !errors.Is(err, errNotAlike) && !errors.Is(err, unix.E2BIG) { // those flows begin anew, or do not fit
		return fmt.Errorf("carry rows of %s over: %w", name, err)
	}
	return nil
}

// Replaces says whether programs that run read maps of the Table in whose place these
// were made, until Publish.
func (d *DataPath) Replaces() bool { return d.old[bpfMapFrontends] != nil }

// dropOld lets go of the maps that no program reads any more.
func (d *DataPath) dropOld() error {
	var errs []error
	for _, maps := range []map[string]*ebpf.Map{d.unfinished, d.old} {
		for name, m := range maps {
			errs = append(errs, m.Close())
			delete(maps, name)
		}
	}
	return errors.Join(errs...)
}

// SetPodLinks says by which links packets of pods come in, now and from now on: by
// those whose name, or that of the bridge that they are a port of, is a pod's.
func (d *DataPath) SetPodLinks(isPod func(name string) bool) error {
	return d.links.setPodLinks(isPod)
}

// Publish makes the kernel run the programs on the maps as they are now. It may
// be called again; then it mends what others have removed.
//
// Programs that have flipped to a new table of flows, and those that have not yet, both
// know what begins meanwhile. So they do if this process comes to no end: the next one
// finds the flows of either, and goes on.
//
//	tell each other ─▶ carry over what began before ─▶ flip ─▶ carry over what began meanwhile ─▶ tell no more
func (d *DataPath) Publish() error {
	if err := d.keepRoot(); err != nil {
		return err
	}
	for _, step := range d.steps() {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// steps are those of Publish. A process may end after each of them.
func (d *DataPath) steps() []func() error {
	// From then on the CNI plugin attaches to new links; those before are ours to find.
	pinPrograms := func() error { return d.links.pinPrograms(d.config.Root) }
	return []func() error{
		d.tellEachOther, d.carryFlows, d.pinNext, d.flip, pinPrograms, d.carryFlows, d.pinMaps, d.tellNoMore, d.dropOld,
	}
}

// flip flips the programs, one after the other. What those that have not flipped write
// in the meantime is carried over all the time.
func (d *DataPath) flip() error {
	attach := func() error {
		if err := d.attachSockets(); err != nil {
			return err
		}
		return d.links.attach()
	}
	if len(d.old) == 0 && len(d.unfinished) == 0 {
		return attach()
	}
	attached, carried := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for more := true; more && err == nil; {
			select {
			case <-attached:
				more = false
			default:
			}
			err = d.carryFlows()
		}
		carried <- err
	}()
	err := attach()
	close(attached)
	return errors.Join(err, <-carried)
}

// StandBy has the programs let all packets pass as they are, or no more: of a flow that
// began at a link with programs, one without would know nothing.
func (d *DataPath) StandBy(is bool) error {
	word := map[bool]uint32{true: 1}[is]
	if err := d.standsBy.Set(word); err != nil {
		return fmt.Errorf("have the programs of packets stand by: %w", err)
	}
	return nil
}

// tellEachOther has programs that read the table of flows which this one replaces, and
// those that read this one, tell each other of flows that begin. See former in c/conn.h.
func (d *DataPath) tellEachOther() error {
	if d.old[bpfMapFlows] == nil {
		return nil
	}
	var id uint32
	err := d.Former.Lookup(uint32(0), &id)
	if err == nil {
		return nil // they do since an earlier process came to no end
	}
	if !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read %s: %w", d.Former, err)
	}
	told, err := ebpf.NewMap(d.specs[bpfMapFormer].InnerMap)
	if err != nil {
		return fmt.Errorf("make a table of flows that begin: %w", err)
	}
	defer func() { _ = told.Close() }()
	if err := d.Former.Put(uint32(0), told); err != nil {
		return fmt.Errorf("write to %s: %w", d.Former, err)
	}
	return nil
}

// tellNoMore ends that, also if an earlier process began it.
func (d *DataPath) tellNoMore() error {
	if err := d.Former.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty %s: %w", d.Former, err)
	}
	return nil
}

// nextMaps is the folder of the pins of maps to which programs flip.
const nextMaps = "next"

// pinNext comes before the programs flip, and pinMaps after: if we end in between, the
// next process does not take the maps for those that all programs read, but finds the
// flows in them.
func (d *DataPath) pinNext() error {
	if err := os.RemoveAll(d.pin(nextMaps)); err != nil {
		return err
	}
	if len(d.fresh) == 0 {
		return nil
	}
	if err := os.MkdirAll(d.pin(nextMaps), 0o700); err != nil {
		return err
	}
	for name := range d.fresh {
		m, err := d.maps[name].Clone() // whatever becomes of the pin, m does not know
		if err != nil {
			return err
		}
		err = m.Pin(d.pin(nextMaps, name))
		_ = m.Close()
		if err != nil {
			return fmt.Errorf("pin map %s: %w", d.pin(nextMaps, name), err)
		}
	}
	return nil
}

func (d *DataPath) pinMaps() error {
	if err := os.MkdirAll(d.pin("maps"), 0o700); err != nil {
		return err
	}
	for name := range d.fresh {
		if err := os.Rename(d.pin(nextMaps, name), d.pin("maps", name)); err != nil {
			return err
		}
	}
	d.fresh = map[string]bool{}
	return os.RemoveAll(d.pin(nextMaps))
}

func (d *DataPath) writeShifts() error {
	if err := d.SctpShifts.Put(uint32(0), shifts()); err != nil {
		return fmt.Errorf("write to %s: %w", d.SctpShifts, err)
	}
	return nil
}

// Refresh writes the rows anew that no caller writes, those of the node's links and
// addresses: what others have done to them is undone.
func (d *DataPath) Refresh() error { return errors.Join(d.writeShifts(), d.links.refresh()) }

// Intact looks whether others have removed what Publish made.
func (d *DataPath) Intact() (bool, error) {
	for name := range d.maps {
		if _, err := os.Stat(d.pin("maps", name)); errors.Is(err, os.ErrNotExist) {
			d.fresh[name] = true
		} else if err != nil {
			return false, err
		}
	}
	attached, err := d.socketsAttached()
	return attached && d.links.attached() && len(d.fresh) == 0, err
}

// Close ends the use of the data path by this process. What Publish made stays.
func (d *DataPath) Close() error {
	var errs []error
	if d.links != nil {
		errs = append(errs, d.links.close())
	}
	errs = append(errs, d.dropOld())
	for _, m := range d.maps {
		errs = append(errs, m.Close())
	}
	errs = append(errs, d.programs.Close())
	errs = append(errs, d.lock.Close())
	return errors.Join(errs...)
}

func (d *DataPath) pin(names ...string) string {
	return filepath.Join(append([]string{d.config.Root}, names...)...)
}

// String says where the data path is attached, for logs.
func (d *DataPath) String() string {
	return fmt.Sprintf("eBPF at cgroup %s, pinned at %s", d.config.CgroupRoot, d.config.Root)
}
