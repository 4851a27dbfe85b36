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
	lock     *os.File
	programs bpfPrograms
	// Variables of the programs, see LookOn and StandBy.
	lookedAtUntil, standsBy *ebpf.Variable
	links                   *links
	watchers                watchers
	maps                    map[string]*ebpf.Map // all that outlive a program
	fresh                   map[string]bool      // those that were made anew
	old                     map[string]*ebpf.Map // in the place of which they were made
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
	d := &DataPath{config: config, lock: lock, fresh: map[string]bool{}, old: map[string]*ebpf.Map{}}
	if err := d.load(); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

func (d *DataPath) load() error {
	spec, err := loadBpf()
	if err != nil {
		return err
	}
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
	err = spec.LoadAndAssign(&objects, &ebpf.CollectionOptions{MapReplacements: d.maps})
	if err != nil {
		return notLoaded(spec, err)
	}
	d.Maps, d.programs = objects.bpfMaps, objects.bpfPrograms
	d.lookedAtUntil, d.standsBy = objects.LookedAtUntil, objects.StandsBy
	if err := d.SctpShifts.Put(uint32(0), shifts()); err != nil {
		return fmt.Errorf("write to %s: %w", d.SctpShifts, err)
	}
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
		m, err := ebpf.LoadPinnedMap(d.pin("maps", name), nil)
		switch {
		case err == nil && spec.Compatible(m) == nil:
			d.maps[name] = m
		case err == nil:
			d.old[name], d.fresh[name] = m, true
		case !errors.Is(err, os.ErrNotExist):
			return fmt.Errorf("open map %s: %w", d.pin("maps", name), err)
		default:
			d.fresh[name] = true
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

// carryFlows gives new maps of flows the rows of the old ones.
func (d *DataPath) carryFlows() error {
	for name, old := range d.old {
		if slices.Contains(tableMaps, name) || !carries(old.Type()) || old.Type() != d.maps[name].Type() {
			continue
		}
		err := carry(old, d.maps[name], d.specs[name])
		if errors.Is(err, errNotAlike) || errors.Is(err, unix.E2BIG) {
			continue // those flows begin anew, or do not fit
		}
		if err != nil {
			return fmt.Errorf("carry rows of %s over: %w", name, err)
		}
	}
	return d.noteFlows()
}

// Replaces says whether programs that run read maps of the Table in whose place these
// were made, until Publish.
func (d *DataPath) Replaces() bool { return d.old[bpfMapFrontends] != nil }

// dropOld lets go of the maps that no program reads any more.
func (d *DataPath) dropOld() error {
	var errs []error
	for _, m := range d.old {
		errs = append(errs, m.Close())
	}
	d.old = map[string]*ebpf.Map{}
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
// know what begins meanwhile: see former in c/conn.h. If its rows have another layout
// they are carried over, a moment later; to a packet that is faster than that the flow
// is not known.
func (d *DataPath) Publish() error {
	// From then on the CNI plugin attaches to new links; those before are ours to find.
	pinPrograms := func() error { return d.links.pinPrograms(d.config.Root) }
	for _, step := range []func() error{
		d.carryFlows, d.showFormer, d.flip, pinPrograms, d.carryFlows, d.pinMaps, d.hideFormer, d.dropOld,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
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
	if len(d.old) == 0 {
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

// showFormer lets programs look into the table of flows that this one replaces.
func (d *DataPath) showFormer() error {
	old, ok := d.old[bpfMapFlows]
	if !ok {
		return nil
	}
	if same, err := sameRows(old, d.specs[bpfMapFlows]); err != nil || !same {
		return err
	}
	// EINVAL: to the kernel the rows are others. Then they are carried over alone.
	if err := d.Former.Put(uint32(0), old); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("write to %s: %w", d.Former, err)
	}
	return nil
}

// hideFormer has them forget it, also if it was of a process that came to no end.
func (d *DataPath) hideFormer() error {
	if err := d.Former.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("empty %s: %w", d.Former, err)
	}
	return nil
}

// pinMaps comes after the programs flip: if we end in between, the next process
// finds no maps that it could take for those in use, and makes new ones.
func (d *DataPath) pinMaps() error {
	if err := os.MkdirAll(d.pin("maps"), 0o700); err != nil {
		return err
	}
	for name := range d.fresh {
		path := d.pin("maps", name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := d.maps[name].Pin(path); err != nil {
			return fmt.Errorf("pin map %s: %w", path, err)
		}
	}
	d.fresh = map[string]bool{}
	return nil
}

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
