package bench

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// CNIReport is the document of fairlead-lab bench cni -o json.
type CNIReport struct {
	Seed      uint64  `json:"seed"`
	Blocks    int     `json:"blocks"`
	Discarded int     `json:"discarded"` // blocks with too much steal
	Setups    []Times `json:"setups"`
	// StartMs is the median time that fairlead-cni takes to tell its version.
	StartMs float64 `json:"startMs"`
	// Resolution is by how much of 1 two candidates that are the same may differ:
	// a difference that is smaller means nothing.
	Resolution float64  `json:"resolution"`
	Figures    []Figure `json:"figures"`
}

// Times is what calls took in a setup: milliseconds, over all blocks, and calls
// per second, of the median block.
type Times struct {
	Setup
	Add Percentiles `json:"add"`
	Del Percentiles `json:"del"`
}

// Percentiles are of one verb.
type Percentiles struct {
	P50Ms     float64 `json:"p50Ms"`
	P90Ms     float64 `json:"p90Ms"`
	CPUMs     float64 `json:"cpuMs"`               // median processor time
	PerSecond float64 `json:"perSecond,omitempty"` // where several are at once
}

// Figure is a comparison within the blocks.
type Figure struct {
	Name string `json:"name"`
	Unit string `json:"unit"` // "×", "ms" or "MB"
	Interval
	AtMost  float64 `json:"atMost,omitempty"`  // what is wanted; 0: nothing is
	AtLeast float64 `json:"atLeast,omitempty"` // likewise
	Verdict Verdict `json:"verdict,omitempty"`
}

// Verdict says whether a figure is what is wanted.
type Verdict string

// The verdicts. A limit inside the interval is neither met nor missed.
const (
	Met     Verdict = "met"
	Missed  Verdict = "missed"
	Unclear Verdict = "unclear"
)

// Wanted is what the figure is to be, and whether it is; "" if nothing is wanted.
func (f Figure) Wanted() string {
	switch {
	case f.AtMost != 0:
		return fmt.Sprintf("at most %g: %s", f.AtMost, f.Verdict)
	case f.AtLeast != 0:
		return fmt.Sprintf("at least %g: %s", f.AtLeast, f.Verdict)
	}
	return ""
}

func (f Figure) judged() Figure {
	switch {
	case f.AtMost != 0:
		f.Verdict = verdict(f.High <= f.AtMost, f.Low > f.AtMost)
	case f.AtLeast != 0:
		f.Verdict = verdict(f.Low >= f.AtLeast, f.High < f.AtLeast)
	}
	return f
}

func verdict(met, missed bool) Verdict {
	switch {
	case met:
		return Met
	case missed:
		return Missed
	}
	return Unclear
}

func newCNIReport(opts CNIOptions, setups []Setup, result Result, random *rand.Rand) (CNIReport, error) {
	r := CNIReport{Seed: opts.Seed, Blocks: result.Blocks, Discarded: result.Discarded}
	r.StartMs = result.Series(starting, addTime).Quantile(0.5)
	for _, s := range setups {
		r.Setups = append(r.Setups, Times{s, percentiles(result, s, addTime), percentiles(result, s, delTime)})
	}
	c := comparison{result, random}
	same := c.same()
	for _, f := range same {
		r.Resolution = max(r.Resolution, f.High-1, 1-f.Low)
	}
	r.Figures = append(same, c.own(opts)...)
	if opts.Reference != "" {
		r.Figures = append(r.Figures, c.beside(opts)...)
	}
	info, err := os.Stat(filepath.Join(opts.BinDir, "fairlead-cni"))
	if err != nil {
		return CNIReport{}, fmt.Errorf("find the size of fairlead-cni: %w", err)
	}
	size := float64(info.Size()) / 1e6
	r.Figures = append(r.Figures, Figure{Name: "size of fairlead-cni", Unit: "MB", Interval: Interval{size, size, size}, AtMost: 10})
	for i := range r.Figures {
		r.Figures[i] = r.Figures[i].judged()
	}
	return r, nil
}

// percentiles are of a verb, whose name is that of its times.
func percentiles(result Result, s Setup, verb string) Percentiles {
	times, cpu := result.Series(s.String(), verb), result.Series(s.String(), verb+" cpu")
	p := Percentiles{P50Ms: times.Quantile(0.5), P90Ms: times.Quantile(0.9), CPUMs: cpu.Quantile(0.5)}
	if rates := result.Series(s.String(), verb+"/s"); len(rates) != 0 {
		p.PerSecond = rates.Quantile(0.5)
	}
	return p
}

// comparison compares candidates of one result.
type comparison struct {
	result Result
	random *rand.Rand
}

// ratio is of candidate a to candidate b.
func (c comparison) ratio(figure, a, b string) Interval {
	return Ratio(c.result.Series(a, figure).Medians(), c.result.Series(b, figure).Medians(), c.random)
}

func (c comparison) difference(figure, a, b string) Interval {
	return Difference(c.result.Series(a, figure).Medians(), c.result.Series(b, figure).Medians(), c.random)
}

// same compares two candidates between which there is no difference.
func (c comparison) same() []Figure {
	base := oneByOne(Fairlead, IPv4, 0).String()
	return []Figure{
		{Name: "ADD, the same against itself", Unit: "×", Interval: c.ratio(addTime, twin, base)},
		{Name: "DEL, the same against itself", Unit: "×", Interval: c.ratio(delTime, twin, base)},
	}
}

// own are the figures of Fairlead alone.
func (c comparison) own(opts CNIOptions) []Figure {
	base, masquerade := oneByOne(Fairlead, IPv4, 0).String(), masqueraded(Fairlead).String()
	figures := []Figure{
		{Name: "ADD above starting the program", Unit: "ms", Interval: c.difference(addTime, base, starting), AtMost: 3},
		{Name: "ADD, IPv6 to IPv4", Unit: "×", Interval: c.ratio(addTime, oneByOne(Fairlead, IPv6, 0).String(), base), AtMost: 1.1},
		{Name: "ADD, dual to IPv4", Unit: "×", Interval: c.ratio(addTime, oneByOne(Fairlead, Dual, 0).String(), base)},
		{Name: "ADD, with ipMasq to without", Unit: "×", Interval: c.ratio(addTime, masquerade, base), AtMost: 1.1},
		{Name: "DEL, with ipMasq to without", Unit: "×", Interval: c.ratio(delTime, masquerade, base), AtMost: 1.1},
	}
	for _, held := range opts.Held {
		figures = append(figures,
			Figure{Name: fmt.Sprintf("allocation, %d held to 1", held), Unit: "×", Interval: c.ratio(addTime, allocating(held), allocating(1)), AtMost: 1.1},
			Figure{Name: fmt.Sprintf("ADD, %d held to none", held), Unit: "×", Interval: c.ratio(addTime, oneByOne(Fairlead, IPv4, held).String(), base)})
	}
	return figures
}

// beside are the figures beside the reference plugins.
func (c comparison) beside(opts CNIOptions) []Figure {
	figure := func(what, of string, s Setup) Figure {
		reference := s
		reference.Plugin = Reference
		return Figure{Name: what + ", fairlead to reference", Unit: "×", Interval: c.ratio(of, s.String(), reference.String())}
	}
	var figures []Figure
	for _, family := range []string{IPv4, IPv6, Dual} {
		s := oneByOne(Fairlead, family, 0)
		add := figure("ADD, "+family, addTime, s)
		add.AtMost = 0.3
		figures = append(figures, add, figure("DEL, "+family, delTime, s))
	}
	figures = append(figures,
		figure("processor time of ADD", addCPU, oneByOne(Fairlead, IPv4, 0)),
		figure("processor time of DEL", delCPU, oneByOne(Fairlead, IPv4, 0)),
		figure("ADD with ipMasq", addTime, masqueraded(Fairlead)),
		figure("DEL with ipMasq", delTime, masqueraded(Fairlead)))
	for _, held := range opts.Held {
		figures = append(figures, figure(fmt.Sprintf("ADD, %d held", held), addTime, oneByOne(Fairlead, IPv4, held)))
	}
	for _, n := range opts.AtOnce {
		add := figure(fmt.Sprintf("ADD/s, %d at once", n), addRate, atOnce(Fairlead, n))
		add.AtLeast = 3
		figures = append(figures, add, figure(fmt.Sprintf("DEL/s, %d at once", n), delRate, atOnce(Fairlead, n)))
	}
	return figures
}
