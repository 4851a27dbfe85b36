package bench

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Quantile is the smallest of the values that at least the part q of them, 0 to
// 1, does not exceed; of an even number the lower median. NaN if there is no
// value.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[max(rank, 0)]
}

// Interval is an estimate and the 95 % confidence interval around it.
type Interval struct {
	Estimate float64 `json:"estimate"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
}

// Ratio is the median, over all blocks, of a divided by b in the same block.
func Ratio(a, b []float64, random *rand.Rand) Interval {
	return estimate(paired(a, b, func(x, y float64) float64 { return x / y }), random)
}

// Difference is the median, over all blocks, of a minus b in the same block.
func Difference(a, b []float64, random *rand.Rand) Interval {
	return estimate(paired(a, b, func(x, y float64) float64 { return x - y }), random)
}

// Median is that of one value for each block.
func Median(values []float64, random *rand.Rand) Interval { return estimate(values, random) }

// paired wants one value of a and of b for each block.
func paired(a, b []float64, f func(x, y float64) float64) []float64 {
	pairs := make([]float64, len(a))
	for i := range a {
		pairs[i] = f(a[i], b[i])
	}
	return pairs
}

// resamples is how often the bootstrap draws: the ends of its interval then
// differ between two runs by less than a tenth of its width.
const resamples = 10_000

// estimate is the median with its percentile bootstrap interval (Efron, 1979):
// where the median lies in 95 of 100 samples that are drawn, with replacement,
// from the values themselves. It assumes nothing of how they are distributed,
// only that blocks do not depend on each other.
func estimate(values []float64, random *rand.Rand) Interval {
	medians := make([]float64, resamples)
	drawn := make([]float64, len(values))
	for i := range medians {
		for j := range drawn {
			drawn[j] = values[random.IntN(len(values))]
		}
		medians[i] = Quantile(drawn, 0.5)
	}
	return Interval{
		Estimate: Quantile(values, 0.5),
		Low:      Quantile(medians, 0.025),
		High:     Quantile(medians, 0.975),
	}
}
