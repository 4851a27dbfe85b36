package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/cni/hostlocal"
)

// CNIOptions is what to compare.
type CNIOptions struct {
	BinDir    string // where fairlead-cni is
	Reference string // where the reference plugins bridge and host-local are; "": without
	Blocks    int
	Held      []int // numbers of addresses that are held already
	AtOnce    []int // numbers of pods that come, and then go, at once
	Seed      uint64
	MaxSteal  float64 // see Blocks
	// Progress gets a line for each step.
	Progress func(string)
}

// Setup is one case of the comparison.
type Setup struct {
	Plugin string `json:"plugin"`
	Family string `json:"family"`
	Held   int    `json:"held"`   // addresses held already
	AtOnce int    `json:"atOnce"` // pods; 1: one after the other
	// Masquerade: the network has ipMasq.
	Masquerade bool `json:"masquerade"`
}

// String is the name of the setup's candidate.
func (s Setup) String() string {
	name := fmt.Sprintf("%s %s, %d held, %d at once", s.Plugin, s.Family, s.Held, s.AtOnce)
	if s.Masquerade {
		name += ", ipMasq"
	}
	return name
}

// The figures of a candidate: of ADD and DEL milliseconds, by the clock and of
// the processors, and where several are at once calls per second.
const (
	addTime, delTime = "ADD", "DEL"
	addCPU, delCPU   = "ADD cpu", "DEL cpu"
	addRate, delRate = "ADD/s", "DEL/s"
)

// Candidates that are no setups.
const (
	starting = "starting fairlead-cni" // its VERSION
	twin     = "the twin"              // the same as one by one, in a world of its own
)

// allocating is the candidate that allocates with so many addresses held: what
// fairlead-cni does with its store in an ADD and a DEL, in this process.
func allocating(held int) string { return fmt.Sprintf("allocating, %d held", held) }

// The number of times in a slice that a pod comes and goes.
const (
	repeats      = 5
	repeatsFull  = 1 // where host-local reads all its files, a second at a time
	repeatsAlloc = 20
)

// cniBench is all that is there at once.
type cniBench struct {
	opts       CNIOptions
	products   products
	dir        string // of the stores
	sandboxes  []*sandbox
	plugins    []*plugin
	candidates []Candidate
	last       int // number of the last container
}

// CNI compares the times of ADD and DEL. It needs root, changes nothing outside
// of network namespaces of its own and leaves nothing behind.
func CNI(ctx context.Context, opts CNIOptions) (CNIReport, error) {
	// Not in /tmp, which is memory on many machines, where nothing takes as long
	// as it does to write to a disk.
	dir, err := os.MkdirTemp("/var/tmp", "fairlead-bench-")
	if err != nil {
		return CNIReport{}, fmt.Errorf("make directory for stores: %w", err)
	}
	b := &cniBench{opts: opts, products: products{opts.BinDir, opts.Reference}, dir: dir}
	defer b.close()
	setups := b.setups()
	if err := b.build(ctx, setups); err != nil {
		return CNIReport{}, err
	}
	random := rand.New(rand.NewPCG(opts.Seed, 0))
	blocks := Blocks{Count: opts.Blocks, Random: random, MaxSteal: opts.MaxSteal, Progress: b.progress}
	result, err := blocks.Run(ctx, b.candidates)
	if err != nil {
		return CNIReport{}, err
	}
	return newCNIReport(opts, setups, result, random)
}

func (b *cniBench) close() {
	for _, s := range b.sandboxes {
		s.close()
	}
	for _, p := range b.plugins {
		p.close()
	}
	_ = os.RemoveAll(b.dir)
}

func (b *cniBench) progress(p Progress) {
	verdict := ""
	if p.Discarded {
		verdict = ": discarded"
	}
	b.opts.Progress(fmt.Sprintf("block %d of %d: %.1f s, steal %.1f %%%s", p.Block, p.Count, p.Took.Seconds(), 100*p.Steal, verdict))
}

// setups are the cases: one dimension varies at a time.
func (b *cniBench) setups() []Setup {
	var setups []Setup
	for _, plugin := range []string{Fairlead, Reference} {
		if plugin == Reference && b.opts.Reference == "" {
			continue
		}
		for _, family := range []string{IPv4, IPv6, Dual} {
			setups = append(setups, oneByOne(plugin, family, 0))
		}
		setups = append(setups, masqueraded(plugin))
		for _, held := range b.opts.Held {
			setups = append(setups, oneByOne(plugin, IPv4, held))
		}
		for _, n := range b.opts.AtOnce {
			setups = append(setups, atOnce(plugin, n))
		}
	}
	return setups
}

// build makes all worlds and the candidates.
func (b *cniBench) build(ctx context.Context, setups []Setup) error {
	most := 1
	for _, s := range setups {
		most = max(most, s.AtOnce)
	}
	for range most {
		s, err := newSandbox()
		if err != nil {
			return err
		}
		b.sandboxes = append(b.sandboxes, s)
	}
	for _, s := range setups {
		if err := b.addSetup(ctx, s.String(), s); err != nil {
			return fmt.Errorf("prepare %s: %w", s, err)
		}
	}
	base := oneByOne(Fairlead, IPv4, 0)
	if err := b.addSetup(ctx, twin, base); err != nil {
		return fmt.Errorf("prepare %s: %w", twin, err)
	}
	starter := b.plugins[len(b.plugins)-1]
	b.candidates = append(b.candidates, Candidate{starting, func(ctx context.Context) (Sample, error) { return start(ctx, starter) }})
	for _, held := range append([]int{1}, b.opts.Held...) {
		if err := b.addAllocation(ctx, held); err != nil {
			return fmt.Errorf("prepare %s: %w", allocating(held), err)
		}
	}
	return nil
}

func oneByOne(plugin, family string, held int) Setup {
	return Setup{Plugin: plugin, Family: family, Held: held, AtOnce: 1}
}

func masqueraded(plugin string) Setup {
	return Setup{Plugin: plugin, Family: IPv4, AtOnce: 1, Masquerade: true}
}

func atOnce(plugin string, n int) Setup {
	return Setup{Plugin: plugin, Family: IPv4, AtOnce: n}
}

// addSetup makes a world and shows that a pod is attached and detached in it.
func (b *cniBench) addSetup(ctx context.Context, name string, s Setup) error {
	b.opts.Progress("prepare " + name)
	dataDir := filepath.Join(b.dir, fmt.Sprint(len(b.plugins)))
	if err := fill(ctx, s, dataDir); err != nil {
		return err
	}
	p, err := newPlugin(b.products, s, dataDir)
	if err != nil {
		return err
	}
	b.plugins = append(b.plugins, p)
	if err := p.verify(ctx, b.sandboxes[0]); err != nil {
		return err
	}
	slice := func(ctx context.Context) (Sample, error) { return b.oneByOne(ctx, p, s) }
	if s.AtOnce > 1 {
		slice = func(ctx context.Context) (Sample, error) { return b.atOnce(ctx, p, s.AtOnce) }
	}
	b.candidates = append(b.candidates, Candidate{name, slice})
	return nil
}

// start runs the program for nothing but its version.
func start(ctx context.Context, p *plugin) (Sample, error) {
	sample := Sample{}
	for range repeats {
		_, c, err := p.call(ctx, "VERSION", "", "")
		if err != nil {
			return nil, err
		}
		sample[addTime] = append(sample[addTime], c.wall)
	}
	return sample, nil
}

func (b *cniBench) oneByOne(ctx context.Context, p *plugin, s Setup) (Sample, error) {
	n := repeats
	if s.Plugin == Reference && s.Held > 0 {
		n = repeatsFull
	}
	all := Sample{}
	for range n {
		sample, err := b.atOnce(ctx, p, 1)
		if err != nil {
			return nil, err
		}
		for figure, values := range sample {
			all[figure] = append(all[figure], values...)
		}
	}
	delete(all, addRate) // of one it is not a rate
	delete(all, delRate)
	return all, nil
}

// atOnce has n pods come, and when all are there, go.
func (b *cniBench) atOnce(ctx context.Context, p *plugin, n int) (Sample, error) {
	first := b.last + 1
	b.last += n
	for _, s := range b.sandboxes[:n] {
		if err := s.reset(); err != nil {
			return nil, err
		}
	}
	sample := Sample{}
	for _, verb := range []string{"ADD", "DEL"} {
		costs := make([]cost, n)
		var all errgroup.Group
		began := time.Now()
		for i, s := range b.sandboxes[:n] {
			all.Go(func() (err error) {
				_, costs[i], err = p.call(ctx, verb, fmt.Sprintf("pod-%d", first+i), s.ns.Path())
				return err
			})
		}
		if err := all.Wait(); err != nil {
			return nil, err
		}
		sample[verb+"/s"] = []float64{float64(n) / time.Since(began).Seconds()}
		for _, c := range costs {
			sample[verb] = append(sample[verb], c.wall)
			sample[verb+" cpu"] = append(sample[verb+" cpu"], c.cpu)
		}
	}
	return sample, nil
}

func (b *cniBench) addAllocation(ctx context.Context, held int) error {
	b.opts.Progress("prepare " + allocating(held))
	s := oneByOne(Fairlead, IPv4, held)
	dataDir := filepath.Join(b.dir, fmt.Sprintf("allocating-%d", held))
	if err := fill(ctx, s, dataDir); err != nil {
		return err
	}
	p, err := newPlugin(b.products, s, dataDir)
	if err != nil {
		return err
	}
	b.plugins = append(b.plugins, p)
	b.candidates = append(b.candidates, Candidate{allocating(held), func(ctx context.Context) (Sample, error) {
		return b.allocate(ctx, p.conf)
	}})
	return nil
}

func (b *cniBench) allocate(ctx context.Context, conf []byte) (Sample, error) {
	plugin, sample := hostlocal.New(), Sample{}
	for range repeatsAlloc {
		b.last++
		args := &skel.CmdArgs{ContainerID: fmt.Sprintf("pod-%d", b.last), IfName: ifName, Netns: "/run/netns/pod", StdinData: conf}
		began := time.Now()
		if _, err := plugin.Add(ctx, args); err != nil {
			return nil, err
		}
		added := time.Now()
		if err := plugin.Del(ctx, args); err != nil {
			return nil, err
		}
		sample[addTime] = append(sample[addTime], milliseconds(added.Sub(began)))
		sample[delTime] = append(sample[delTime], milliseconds(time.Since(added)))
	}
	return sample, nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }
