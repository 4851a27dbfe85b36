package bench

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestQuantile(t *testing.T) {
	tests := map[string]struct {
		values []float64
		q      float64
		want   float64
	}{
		"one":                      {[]float64{7}, 0.5, 7},
		"median of three":          {[]float64{9, 1, 5}, 0.5, 5},
		"lower median of four":     {[]float64{4, 3, 2, 1}, 0.5, 2},
		"nine of ten":              {[]float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 0.9, 9},
		"least":                    {[]float64{3, 1, 2}, 0, 1},
		"greatest":                 {[]float64{3, 1, 2}, 1, 3},
		"an outlier does not show": {[]float64{1, 1, 1, 1, 1e9}, 0.5, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Quantile(tt.values, tt.q); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	if got := Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("of no value: %v", got)
	}
}

// TestIntervalCovers draws samples whose true ratio is known: of the 95 %
// intervals nearly that many must contain it. (Of the median of 20 values the
// percentile bootstrap is known to come to 92 to 96.)
func TestIntervalCovers(t *testing.T) {
	const ratio, blocks, trials = 1.5, 20, 200
	random := rand.New(rand.NewPCG(1, 2))
	covered := 0
	for range trials {
		a, b := make([]float64, blocks), make([]float64, blocks)
		for i := range blocks {
			mood := 1 + 9*random.Float64() // of the machine, in this block
			b[i] = mood
			a[i] = mood * ratio * math.Exp(0.2*random.NormFloat64())
		}
		interval := Ratio(a, b, random)
		if interval.Low > interval.Estimate || interval.Estimate > interval.High {
			t.Fatalf("the estimate is not in its interval: %+v", interval)
		}
		if interval.Low <= ratio && ratio <= interval.High {
			covered++
		}
	}
	if part := float64(covered) / trials; part < 0.90 || part > 0.99 {
		t.Errorf("%.1f %% of the intervals contain the truth", 100*part)
	}
}

func TestDifference(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	got := Difference([]float64{13, 23, 33}, []float64{10, 20, 30}, random)
	if want := (Interval{3, 3, 3}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
