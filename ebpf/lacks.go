package ebpf

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// ErrInUse is that another process has the data path.
var ErrInUse = errors.New("another process has it: only one may program a node")

// Try loads the programs and lets go of them: nothing is pinned, attached or made.
// The error says what the kernel lacks.
func Try(cgroupRoot string) error {
	if cgroupRoot == "" {
		if _, err := findCgroupRoot(); err != nil {
			return err
		}
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return notAllowed(err)
	}
	spec, err := loadBpf()
	if err != nil {
		return err
	}
	for _, m := range spec.Maps {
		if slices.Contains([]ebpf.MapType{ebpf.Hash, ebpf.LRUHash, ebpf.Array, ebpf.LPMTrie}, m.Type) {
			m.MaxEntries = 1
		}
	}
	all, err := ebpf.NewCollection(spec)
	if err != nil {
		return notLoaded(spec, err)
	}
	all.Close()
	return nil
}

// notLoaded says why the kernel does not take the programs: what it lacks of that
// which they use, where that can be found out, otherwise in its own words.
func notLoaded(spec *ebpf.CollectionSpec, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("load programs: %w", notAllowed(err))
	}
	if lacks := lacking(spec); lacks != "" {
		return fmt.Errorf("load programs: %s", lacks)
	}
	return fmt.Errorf("load programs: %w", err)
}

// notAllowed says what a process needs that the kernel refuses.
func notAllowed(err error) error {
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	return fmt.Errorf("this process needs CAP_SYS_ADMIN, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: %w", unix.EPERM)
}

// lacking looks for what the kernel does not have of that which programs and maps
// use. It tries, and is called only when something has failed.
func lacking(spec *ebpf.CollectionSpec) string {
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if t := spec.Maps[name].Type; errors.Is(features.HaveMapType(t), ebpf.ErrNotSupported) {
			return fmt.Sprintf("the kernel has no BPF maps of type %s", t)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		p := spec.Programs[name]
		if errors.Is(features.HaveProgramType(p.Type), ebpf.ErrNotSupported) {
			return fmt.Sprintf("the kernel has no BPF programs of type %s", p.Type)
		}
		for _, ins := range p.Instructions {
			if !ins.IsBuiltinCall() {
				continue
			}
			helper := asm.BuiltinFunc(ins.Constant)
			if errors.Is(features.HaveProgramHelper(p.Type, helper), ebpf.ErrNotSupported) {
				return fmt.Sprintf("the kernel's BPF programs of type %s have no %s", p.Type, helperName(helper))
			}
		}
	}
	return ""
}

var capital = regexp.MustCompile(`[A-Z]`)

// helperName is what bpf-helpers(7) calls a function: FnSetRetval is bpf_set_retval.
func helperName(f asm.BuiltinFunc) string {
	return "bpf" + strings.ToLower(capital.ReplaceAllString(strings.TrimPrefix(f.String(), "Fn"), "_$0"))
}

// canAttach attaches a program of either path for a moment, before there is
// anything that it could find in its maps: a kernel may take programs and have no
// place for them.
func (d *DataPath) canAttach() error {
	socket, err := link.AttachCgroup(link.CgroupOptions{
		Path: d.config.CgroupRoot, Attach: ebpf.AttachCgroupInetSockRelease, Program: d.programs.SockRelease,
	})
	if err != nil {
		return fmt.Errorf("attach to cgroup %s: %w", d.config.CgroupRoot, err)
	}
	_ = socket.Close()
	return d.links.canAttach()
}
