package datapath

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/fairlead/fairlead/e2e/bench"
)

// Read reads a results.json.
func Read(path string) (Results, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Results{}, fmt.Errorf("read results: %w", err)
	}
	var r Results
	if err := json.Unmarshal(text, &r); err != nil {
		return Results{}, fmt.Errorf("read results: %s: %w", path, err)
	}
	if r.Schema != Schema {
		return Results{}, fmt.Errorf("read results: %s: schema %q: allowed is %s", path, r.Schema, Schema)
	}
	return r, nil
}

// Difference is what became of a figure of a candidate from one run to another.
type Difference struct {
	Measure
	Candidate string
	// Old and New are ratios to direct, which hold between moments and machines, or,
	// where a figure has no such baseline, medians in its unit.
	Old, New bench.Interval
	// Beyond is by how much of Old the two must differ to differ at all.
	Beyond  float64
	Verdict Change
	Why     string // of NowFlawed
}

// Change is what a Difference comes to.
type Change string

// The changes.
const (
	Same      Change = "same"
	Faster    Change = "better"
	Slower    Change = "worse"
	NowFlawed Change = "now without figures"
	NowRight  Change = "now right"
	Missing   Change = "no longer measured"
)

// leastChange is what figures without a measured resolution must differ by: those
// of proxies, whose time is that of a whole process on a machine with others.
const leastChange = 0.1

// Compare compares every figure that the old run has.
func Compare(before, after Results) []Difference {
	var all []Difference
	for _, m := range before.Measures {
		for _, row := range m.Rows {
			if row.Candidate == m.Base && m.Base == Direct {
				continue // it is 1
			}
			now, other := after.find(m, row.Candidate)
			all = append(all, difference(m, now, row, other))
		}
	}
	return all
}

// find finds the measure and the row of the same name.
func (r Results) find(like Measure, candidate string) (Measure, Row) {
	for _, m := range r.Measures {
		if m.ID == like.ID && m.Figure == like.Figure && m.Services == like.Services {
			return m, m.Row(candidate)
		}
	}
	return Measure{}, Row{}
}

func difference(before, after Measure, was, is Row) Difference {
	d := Difference{Measure: before, Candidate: was.Candidate, Verdict: Same}
	switch {
	case is.Candidate == "":
		d.Verdict = Missing
		return d
	case is.Wrong != "" && was.Wrong == "":
		d.Verdict, d.Why = NowFlawed, is.Verdict()
		return d
	case is.Wrong == "" && was.Wrong != "":
		d.Verdict = NowRight
		return d
	}
	old, now, ok := comparable(before, was, is)
	if !ok {
		return d
	}
	d.Old, d.New = old, now
	d.Beyond = max(before.Resolution, after.Resolution)
	if d.Beyond == 0 {
		d.Beyond = leastChange
	}
	d.Verdict = d.judged()
	return d
}

// comparable picks what holds between two runs.
func comparable(m Measure, was, is Row) (old, now bench.Interval, ok bool) {
	if m.Base == Direct {
		if was.Ratio == nil || is.Ratio == nil {
			return old, now, false
		}
		return *was.Ratio, *is.Ratio, true
	}
	if was.Median == nil || is.Median == nil {
		return old, now, false
	}
	return *was.Median, *is.Median, true
}

// judged says that there is a change only where the intervals do not touch and the
// estimates differ by more than can be told apart.
func (d Difference) judged() Change {
	margin := d.Beyond * d.Old.Estimate
	more := d.New.Low > d.Old.High && d.New.Estimate-d.Old.Estimate > margin
	less := d.New.High < d.Old.Low && d.Old.Estimate-d.New.Estimate > margin
	switch {
	case more && d.Higher || less && !d.Higher:
		return Faster
	case more || less:
		return Slower
	}
	return Same
}

// Regression says that the new run is worse.
func (d Difference) Regression() bool { return d.Verdict == Slower || d.Verdict == NowFlawed }
