package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
)

// RoutesOptions is how to measure one TCP stream between pods of two nodes.
type RoutesOptions struct {
	BinDir   string // where the programs are
	Mode     string // of the lab's proxies
	Blocks   int
	Slice    time.Duration // of each stream in a block
	Seed     uint64
	MaxSteal float64 // see Blocks
	// Progress gets a line for each step.
	Progress func(string)
}

// RoutesReport is the document of fairlead-lab bench routes -o json.
type RoutesReport struct {
	Seed      uint64 `json:"seed"`
	Mode      string `json:"mode"`
	Blocks    int    `json:"blocks"`
	Discarded int    `json:"discarded"` // blocks with too much steal
	// Rates are the medians: candidate → 10^9 bits a second.
	Rates map[string]float64 `json:"rates"`
	// Resolution is by how much of 1 two streams over the same path may differ.
	Resolution float64  `json:"resolution"`
	Figures    []Figure `json:"figures"`
}

// The ways of a stream. Each is measured in both families.
const (
	bareWay   = "bare" // veths and routes alone, with as many routers as between two nodes
	twinWay   = "bare, the same again"
	directWay = "direct"
	vxlanWay  = "VXLAN"
)

const throughput = "Gbit/s"

// Routes compares streams between pods of nodes, directly and through VXLAN, with those
// over a bare path. Everything on the way is real: fairlead node, a proxy and
// fairlead-cni have made it.
func Routes(ctx context.Context, opts RoutesOptions) (RoutesReport, error) {
	report := RoutesReport{Seed: opts.Seed, Mode: opts.Mode, Rates: map[string]float64{}}
	opts.Progress("building three nodes, the last one behind a router, and a bare path")
	l, err := lab.New(ctx, lab.Options{Nodes: 3, Routed: true, Mode: opts.Mode, BinDir: opts.BinDir})
	if err != nil {
		return report, err
	}
	defer func() { _ = l.Close() }()
	paths, err := layPaths(ctx, l)
	if err != nil {
		return report, err
	}
	var candidates []Candidate
	for _, p := range paths {
		candidates = append(candidates, Candidate{Name: p.name, Slice: func(ctx context.Context) (Sample, error) {
			rate, err := p.rate(ctx, opts.Slice)
			return Sample{throughput: {rate}}, err
		}})
	}
	random := rand.New(rand.NewPCG(opts.Seed, 0))
	result, err := Blocks{Count: opts.Blocks, Random: random, MaxSteal: opts.MaxSteal, Progress: func(p Progress) {
		opts.Progress(fmt.Sprintf("block %d of %d, steal %.1f %%", p.Block, p.Count, 100*p.Steal))
	}}.Run(ctx, candidates)
	if err != nil {
		return report, err
	}
	report.Blocks, report.Discarded = result.Blocks, result.Discarded
	report.compare(comparison{result, random}, paths)
	return report, nil
}

// compare makes the figures.
func (r *RoutesReport) compare(c comparison, paths []path) {
	for _, p := range paths {
		r.Rates[p.name] = c.result.Series(p.name, throughput).Quantile(0.5)
	}
	for _, family := range []string{IPv4, IPv6} {
		beside := func(way string) Figure {
			return Figure{Name: way + " to bare, " + family, Unit: "×", Interval: c.ratio(throughput, way+" "+family, bareWay+" "+family)}
		}
		same, direct := beside(twinWay), beside(directWay)
		r.Resolution = max(r.Resolution, same.High-1, 1-same.Low)
		direct.AtLeast = 0.95
		r.Figures = append(r.Figures, same, direct.judged(), beside(vxlanWay))
	}
}

// layPaths makes the pods at the ends of all paths.
func layPaths(ctx context.Context, l *lab.Lab) ([]path, error) {
	bare, err := l.AddBarePath()
	if err != nil {
		return nil, err
	}
	var pods []*lab.Pod
	for i, n := range l.Nodes {
		pod, err := l.AddPod(ctx, n, fmt.Sprint("pod-", i+1))
		if err != nil {
			return nil, err
		}
		pods = append(pods, pod)
	}
	var paths []path
	for i, family := range []string{IPv4, IPv6} {
		for _, p := range []path{
			{bareWay, bare[0].NS(), bare[1].NS(), bare[0].Addrs[i], bare[1].Addrs[i]},
			{twinWay, bare[0].NS(), bare[1].NS(), bare[0].Addrs[i], bare[1].Addrs[i]},
			{directWay, pods[0].NS(), pods[1].NS(), pods[0].Addrs[i], pods[1].Addrs[i]},
			{vxlanWay, pods[0].NS(), pods[2].NS(), pods[0].Addrs[i], pods[2].Addrs[i]},
		} {
			p.name += " " + family
			paths = append(paths, p)
		}
	}
	return paths, nil
}
