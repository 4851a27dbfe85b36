package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/iptables"
	"github.com/fairlead/fairlead/proxy/service"
)

// Modes of --mode.
const (
	modeAuto     = "auto"
	modeEBPF     = "ebpf"
	modeIptables = "iptables"
)

// backendFlags choose the backend and say how it is to work.
type backendFlags struct {
	mode            string
	iptablesVariant string
	masqueradeBit   uint8
	bpf             bpf.Config
	mapSizes        map[string]int
	// countedPorts is of how many Service ports connections are counted one by one.
	countedPorts int
}

func (f *backendFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.mode, "mode", modeAuto, "how the kernel is programmed: iptables, ebpf, or auto for ebpf where the kernel can, else iptables")
	flags.StringVar(&f.iptablesVariant, "iptables-variant", "", `which iptables to use: legacy, nft, auto for what the node's other programs use, or "" for what the host calls iptables`)
	flags.Uint8Var(&f.masqueradeBit, "iptables-masquerade-bit", 14, "bit (0 to 31) of the packet mark that packets to be masqueraded have")
	flags.IntVar(&f.countedPorts, "connection-metrics", 500, "how many Service ports have a counter of their connections in the metrics; 0 counts none")
	flags.StringVar(&f.bpf.Root, "bpf-root", bpf.DefaultRoot, "folder of a bpf file system in which programs and maps are pinned")
	flags.BoolVar(&f.bpf.Clsact, "no-tcx", false, "mode ebpf: attach programs as filters of clsact, as before kernel 6.6, not by tcx, which goes before all filters")
	flags.StringVar(&f.bpf.CgroupRoot, "cgroup-root", "", "folder of cgroup v2 below which sockets are served (default: the root of all cgroups)")
	flags.StringToIntVar(&f.mapSizes, "map-size", nil, "how many rows a map of the ebpf mode has: "+strings.Join(bpf.MapNames(), ", "))
}

// check looks at what the flags say.
func (f *backendFlags) check() error {
	switch f.mode {
	case modeIptables, modeEBPF, modeAuto:
	default:
		return usagef("--mode %q: allowed are iptables, ebpf and auto", f.mode)
	}
	switch f.iptablesVariant {
	case "", iptables.Legacy, iptables.NFT, autoVariant:
	default:
		return usagef("--iptables-variant %q: allowed are legacy, nft and auto", f.iptablesVariant)
	}
	if f.masqueradeBit > 31 {
		return usagef("--iptables-masquerade-bit %d: allowed are 0 to 31", f.masqueradeBit)
	}
	if below, ok := strings.CutPrefix(f.bpf.Root, "/sys/fs/bpf/"); ok && strings.Contains(below, ".") {
		return usagef("--bpf-root %q: a bpf file system allows no dot in the name of a folder", f.bpf.Root)
	}
	if f.countedPorts < 0 || f.countedPorts > maxCountedPorts {
		return usagef("--connection-metrics %d: allowed are 0 to %d", f.countedPorts, maxCountedPorts)
	}
	f.bpf.Sizes = map[string]uint32{}
	for _, name := range slices.Sorted(maps.Keys(f.mapSizes)) {
		size := f.mapSizes[name]
		if !slices.Contains(bpf.MapNames(), name) {
			return usagef("--map-size %s=%d: allowed are %s", name, size, strings.Join(bpf.MapNames(), ", "))
		}
		if size < 1 || size > maxMapSize {
			return usagef("--map-size %s=%d: allowed are 1 to %d", name, size, maxMapSize)
		}
		f.bpf.Sizes[name] = uint32(size)
	}
	return nil
}

// autoVariant is an --iptables-variant: for a proxy in an image, which brings both.
const autoVariant = "auto"

// maxMapSize is more rows than any cluster needs and less than the kernel's limits.
const maxMapSize = 1 << 24

// maxCountedPorts is where a counter more begins to cost, each time that iptables
// writes rules: the kernel looks them up one by one.
const maxCountedPorts = 10_000

// backend programs the kernel in one mode. What another mode has left there it
// removes as soon as its own is in the kernel: flows that have begun go on.
type backend struct {
	proxy.Backend
	fmt.Stringer
	mode   string
	lacks  []string                    // what the node lacks, because of which something is not served
	others func(context.Context) error // removes what other modes left; nil: done
}

// counter is a backend that counts connections, of each Service port.
type counter interface {
	Connections() (map[service.Origin]uint64, error)
}

// Sync is the mode's own.
func (b *backend) Sync(ctx context.Context, t *service.Table, change service.Change) error {
	err := b.Backend.Sync(ctx, t, change)
	if err != nil || b.others == nil {
		return err
	}
	if err := b.others(ctx); err != nil {
		return fmt.Errorf("remove what another mode has left: %w", err)
	}
	b.others = nil
	return nil
}

// newBackend makes the backend that the flags ask for, for the node of that name.
func (f *backendFlags) newBackend(node string, log *slog.Logger) (*backend, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	var lacks []string
	if f.mode != modeIptables {
		b, err := bpf.New(f.bpf)
		if err == nil {
			return &backend{Backend: b, Stringer: b, mode: modeEBPF, lacks: lacksOfEBPF(), others: f.removeIptables}, nil
		}
		if f.mode == modeEBPF || errors.Is(err, bpf.ErrInUse) {
			return nil, fmt.Errorf("--mode %s: %w", f.mode, err)
		}
		log.Warn("--mode auto: eBPF cannot be used on this node, so iptables is", "because", err)
		lacks = append(lacks, "eBPF: "+err.Error())
	}
	if f.iptablesVariant == autoVariant {
		var err error
		if f.iptablesVariant, err = iptables.HostVariant(context.Background()); err != nil {
			return nil, err
		}
	}
	b, err := f.newIptables(node)
	if err != nil {
		return nil, err
	}
	for _, err := range b.Missing() {
		log.Warn("one address family is not served", "error", err)
		lacks = append(lacks, err.Error())
	}
	if err := b.Uncounted(); err != nil {
		log.Warn("connections of Services are not counted", "error", err)
	}
	removeBPF := func(context.Context) error { return bpf.HandOver(f.bpf.Root) }
	return &backend{Backend: b, Stringer: b, mode: modeIptables, lacks: lacks, others: removeBPF}, nil
}

// lacksOfEBPF is what a kernel may lack with which mode ebpf works.
func lacksOfEBPF() []string {
	if err := bpf.CanEndSockets(); err != nil {
		return []string{err.Error()}
	}
	return nil
}

func (f *backendFlags) newIptables(node string) (*iptables.Backend, error) {
	return iptables.New(iptables.Config{Variant: f.iptablesVariant, MasqueradeMark: 1 << f.masqueradeBit, Counters: f.countedPorts, Node: node})
}

// removeIptables is for hosts that may never have had an iptables.
func (f *backendFlags) removeIptables(ctx context.Context) error {
	err := f.cleanupIptables(ctx)
	if errors.Is(err, exec.ErrNotFound) {
		return nil
	}
	return err
}
