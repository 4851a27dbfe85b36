package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// counting is a candidate that counts its slices.
func counting(name string, slices *int, fail error) Candidate {
	return Candidate{name, func(context.Context) (Sample, error) {
		*slices++
		return Sample{"n": {float64(*slices)}}, fail
	}}
}

func TestBlocks(t *testing.T) {
	var a, b int
	var seen []int
	blocks := Blocks{Count: 3, Random: rand.New(rand.NewPCG(1, 1)), MaxSteal: 1,
		Progress: func(p Progress) { seen = append(seen, p.Block) }}
	result, err := blocks.Run(t.Context(), []Candidate{counting("a", &a, nil), counting("b", &b, nil)})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} { // the first slice does not count
		if diff := cmp.Diff([]float64{2, 3, 4}, result.Series(name, "n").Medians()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if diff := cmp.Diff([]int{1, 2, 3}, seen); diff != "" || result.Blocks != 3 || result.Discarded != 0 {
		t.Errorf("result %+v, progress (-want +got):\n%s", result, diff)
	}
}

// TestBlocksDiscards has no block be good enough.
func TestBlocksDiscards(t *testing.T) {
	var a int
	blocks := Blocks{Count: 3, Random: rand.New(rand.NewPCG(1, 1)), MaxSteal: -1, Progress: func(p Progress) {
		if !p.Discarded {
			t.Errorf("a block counts: %+v", p)
		}
	}}
	_, err := blocks.Run(t.Context(), []Candidate{counting("a", &a, nil)})
	if err == nil || !strings.HasSuffix(err.Error(), "in 4 of 4 blocks (steal in /proc/stat): the machine is too busy") {
		t.Error(err)
	}
}

func TestBlocksEndWithAnError(t *testing.T) {
	var a int
	failed := errors.New("no route")
	blocks := Blocks{Count: 3, Random: rand.New(rand.NewPCG(1, 1)), MaxSteal: 1}
	_, err := blocks.Run(t.Context(), []Candidate{counting("a", &a, failed)})
	if !errors.Is(err, failed) || err.Error() != "measure a: no route" || a != 1 {
		t.Errorf("after %d slices: %v", a, err)
	}
}

func TestSteal(t *testing.T) {
	before, err := parseTimes("cpu  10 20 30 40 50 60 70 80 90 100\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseTimes("cpu  10 20 30 139 50 60 70 81 90 100\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := after.stealSince(before); got != 0.01 {
		t.Errorf("1 of 100 ticks were stolen, got %v", got)
	}
	if got := after.stealSince(after); got != 0 {
		t.Errorf("in no time: %v", got)
	}
	if _, err := parseTimes("cpu 1 2 3 4 5 6 7\n"); err == nil {
		t.Error("a kernel without steal time is accepted")
	}
}

func TestVerdict(t *testing.T) {
	tests := map[string]struct {
		figure Figure
		want   Verdict
	}{
		"below at most":      {Figure{AtMost: 3, Interval: Interval{2, 1, 3}}, Met},
		"above at most":      {Figure{AtMost: 3, Interval: Interval{4, 3.1, 5}}, Missed},
		"around at most":     {Figure{AtMost: 3, Interval: Interval{2, 1, 4}}, Unclear},
		"above at least":     {Figure{AtLeast: 3, Interval: Interval{4, 3, 5}}, Met},
		"below at least":     {Figure{AtLeast: 3, Interval: Interval{2, 1, 2.9}}, Missed},
		"around at least":    {Figure{AtLeast: 3, Interval: Interval{4, 2, 5}}, Unclear},
		"nothing was wanted": {Figure{Interval: Interval{4, 2, 5}}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := tt.figure.judged().Verdict; got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
