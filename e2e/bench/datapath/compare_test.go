package datapath

import (
	"testing"

	"github.com/fairlead/fairlead/e2e/bench"
)

func resultsWith(m Measure) Results { return Results{Schema: Schema, Measures: []Measure{m}} }

// ofTraffic is a figure with a baseline: ratio, its interval, the resolution.
func ofTraffic(ratio, low, high, resolution float64) Measure {
	return Measure{ID: "tcp-new", Figure: "exchange", Base: Direct, Services: 1, Resolution: resolution, Rows: []Row{
		{Candidate: Direct, Median: &bench.Interval{Estimate: 1}},
		{Candidate: EBPF, Ratio: &bench.Interval{Estimate: ratio, Low: low, High: high}},
	}}
}

// ofProxies is one without.
func ofProxies(median, low, high float64) Measure {
	return Measure{ID: "cold", Figure: "cold sync", Base: Iptables, Services: 1, Rows: []Row{
		{Candidate: EBPF, Median: &bench.Interval{Estimate: median, Low: low, High: high}},
	}}
}

func wrong(m Measure) Measure {
	m.Rows[len(m.Rows)-1] = Row{Candidate: EBPF, Flaw: Flaw{Wrong: "of 300 connections the backends got a 300"}}
	return m
}

func higher(m Measure) Measure {
	m.Higher = true
	return m
}

func TestCompare(t *testing.T) {
	tests := map[string]struct {
		before, after Measure
		want          Change
		regression    bool
	}{
		"the same":              {ofTraffic(1.2, 1.1, 1.3, 0.05), ofTraffic(1.2, 1.1, 1.3, 0.05), Same, false},
		"slower":                {ofTraffic(1.2, 1.1, 1.3, 0.05), ofTraffic(1.5, 1.4, 1.6, 0.05), Slower, true},
		"faster":                {ofTraffic(1.5, 1.4, 1.6, 0.05), ofTraffic(1.2, 1.1, 1.3, 0.05), Faster, false},
		"less throughput":       {higher(ofTraffic(1.0, 0.9, 1.1, 0.05)), higher(ofTraffic(0.5, 0.4, 0.6, 0.05)), Slower, true},
		"intervals overlap":     {ofTraffic(1.2, 1.1, 1.45, 0.05), ofTraffic(1.5, 1.4, 1.6, 0.05), Same, false},
		"below old resolution":  {ofTraffic(1.2, 1.19, 1.21, 0.3), ofTraffic(1.5, 1.49, 1.51, 0.01), Same, false},
		"below new resolution":  {ofTraffic(1.2, 1.19, 1.21, 0.01), ofTraffic(1.5, 1.49, 1.51, 0.3), Same, false},
		"proxy slower":          {ofProxies(100, 99, 101), ofProxies(120, 119, 121), Slower, true},
		"proxy a little slower": {ofProxies(100, 99, 101), ofProxies(105, 104, 106), Same, false},
		"was right":             {ofProxies(100, 99, 101), wrong(ofProxies(100, 99, 101)), NowFlawed, true},
		"was wrong":             {wrong(ofProxies(100, 99, 101)), ofProxies(100, 99, 101), NowRight, false},
		"is wrong as it was":    {wrong(ofProxies(1, 1, 1)), wrong(ofProxies(1, 1, 1)), Same, false},
		"not measured any more": {ofProxies(100, 99, 101), ofTraffic(1, 1, 1, 0), Missing, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := Compare(resultsWith(tt.before), resultsWith(tt.after))
			if len(got) != 1 || got[0].Verdict != tt.want || got[0].Regression() != tt.regression {
				t.Errorf("got %+v, want one %s", got, tt.want)
			}
		})
	}
}
