// Package bench measures candidates beside each other, for fairlead-lab bench.
//
// A small machine that others share is twice as slow from one minute to the
// next, so a figure means something only beside another of the same moment. All
// candidates are there at once, and are measured in blocks: a short slice of
// each, in an order that is drawn for each block. What is compared is two
// candidates in the same block, and of all blocks the median with an interval
// (stats.go). A block in which the hypervisor took the processor away is thrown
// away and measured again (steal.go).
//
//	Candidates ──Blocks.Run──▶ Result: candidate → figure → values of each block ──Ratio, Difference──▶ Interval
//
// What the candidates of each comparison are is in a file of its own: cni.go, routes.go.
package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Candidate is something that is measured.
type Candidate struct {
	Name string // no other candidate has it
	// Slice measures for a short while. An error ends the measurement: a
	// candidate that does not do its work is not fast.
	Slice func(context.Context) (Sample, error)
}

// Sample is what a slice measured: figure → values. Their units are the
// candidate's own.
type Sample map[string][]float64

// Blocks says how to measure.
type Blocks struct {
	Count  int
	Random *rand.Rand
	// MaxSteal is the part of the machine's processor time that others may take
	// during a block that counts, 0 to 1.
	MaxSteal float64
	// NoWarmUp: slices are long, and the first one is as good as any.
	NoWarmUp bool
	// Progress is called after each block.
	Progress func(Progress)
}

// Progress is how far a measurement is.
type Progress struct {
	Block, Count int           // number of the block, from 1, and of blocks wanted
	Took         time.Duration // this block
	Steal        float64       // during this block, 0 to 1
	Discarded    bool          // this block
}

// Result is what was measured.
type Result struct {
	Blocks    int
	Discarded int
	series    map[key]Series
}

type key struct{ candidate, figure string }

// Series is one figure of one candidate: the values of each block, in time.
type Series [][]float64

// Series returns a figure of a candidate, empty if there is none.
func (r Result) Series(candidate, figure string) Series { return r.series[key{candidate, figure}] }

// Medians are one value for each block.
func (s Series) Medians() []float64 {
	medians := make([]float64, len(s))
	for i, values := range s {
		medians[i] = Quantile(values, 0.5)
	}
	return medians
}

// Quantile is over the values of all blocks.
func (s Series) Quantile(q float64) float64 { return Quantile(slices.Concat(s...), q) }

// Run measures. After one slice of each candidate that does not count, blocks
// are measured until Count are good, or until as many were not. With an error
// comes what was measured until then.
func (b Blocks) Run(ctx context.Context, candidates []Candidate) (Result, error) {
	result := Result{series: map[key]Series{}}
	if !b.NoWarmUp {
		if _, err := b.block(ctx, candidates); err != nil {
			return result, err
		}
	}
	for result.Blocks < b.Count {
		if result.Discarded > b.Count {
			return result, fmt.Errorf("measure: others took more than %.0f %% of the processors' time in %d of %d blocks (steal in /proc/stat): the machine is too busy",
				100*b.MaxSteal, result.Discarded, result.Blocks+result.Discarded)
		}
		before, err := readTimes()
		if err != nil {
			return result, err
		}
		began := time.Now()
		samples, err := b.block(ctx, candidates)
		if err != nil {
			return result, err
		}
		after, err := readTimes()
		if err != nil {
			return result, err
		}
		steal := after.stealSince(before)
		discarded := steal > b.MaxSteal
		if discarded {
			result.Discarded++
		} else {
			result.add(samples)
		}
		b.Progress(Progress{
			Block: result.Blocks, Count: b.Count, Took: time.Since(began), Steal: steal, Discarded: discarded,
		})
	}
	return result, nil
}

// block returns candidate → what its slice measured.
func (b Blocks) block(ctx context.Context, candidates []Candidate) (map[string]Sample, error) {
	samples := map[string]Sample{}
	for _, i := range b.Random.Perm(len(candidates)) {
		c := candidates[i]
		sample, err := c.Slice(ctx)
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", c.Name, err)
		}
		samples[c.Name] = sample
	}
	return samples, nil
}

func (r *Result) add(samples map[string]Sample) {
	r.Blocks++
	for candidate, sample := range samples {
		for figure, values := range sample {
			k := key{candidate, figure}
			r.series[k] = append(r.series[k], values)
		}
	}
}
