package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/bench/datapath"
)

// Markdown writes the main figures of a run as a page of docs: what was measured
// on which machine, and a table for each figure that has a picture.
func Markdown(w io.Writer, r datapath.Results) error {
	var out strings.Builder
	fmt.Fprintf(&out, `# Ways to a Service, measured

Written by `+"`fairlead-lab bench`"+` (`+"`make bench-docs`"+` runs it again and writes this page): suite %s,
%s UTC, %d processors (%s), Linux %s, load average %g before and %g after.
`, r.Suite, r.Started.Format("2 January 2006 15:04"), r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Machine.LoadBefore[0], r.Machine.LoadAfter[0])
	if busy(r.Machine) {
		out.WriteString("**The machine was busy with other programs**: intervals are wide, times longer than on a quiet machine.\n")
	}
	if r.Interrupted {
		out.WriteString("**The run was interrupted**: not everything was measured.\n")
	}
	out.WriteString(`
Each candidate is on a node of its own, in network namespaces that are there all at once; slices of a few
milliseconds take turns in random order, and are compared within a block of them. A number is the median over
the blocks with its 95 % interval; × is the ratio to direct, which is the same way through a node without a proxy.
A ratio that differs from 1 by less than the resolution means nothing. Where no interval stands there was one block.

| candidate | what it is |
|---|---|
`)
	for _, c := range r.Candidates {
		fmt.Fprintf(&out, "| %s | %s |\n", c.Name, c.Version)
	}
	wrong := 0
	for _, c := range r.Checks {
		if c.Wrong != "" {
			wrong++
			fmt.Fprintf(&out, "\n%s is wrong on the way %s with %d Services: %s\n", c.Candidate, c.Measure, c.Services, firstLine(c.Wrong))
		}
	}
	fmt.Fprintf(&out, "\nOf %d checks of spread, source address and errors %d failed.\n", len(r.Checks), wrong)
	tables(&out, r)
	if r.CNI != nil {
		pods(&out, *r.CNI)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func tables(out *strings.Builder, r datapath.Results) {
	// Measures lie in the order of the run: with each number of Services all of them.
	var measures []datapath.Measure
	for _, m := range r.Measures {
		if mainFigures[m.Figure] {
			measures = append(measures, m)
		}
	}
	title := func(m datapath.Measure) string { return m.Title + ": " + m.Name }
	first := map[string]int{}
	for i, m := range measures {
		if _, ok := first[title(m)]; !ok {
			first[title(m)] = i
		}
	}
	slices.SortStableFunc(measures, func(a, b datapath.Measure) int { return first[title(a)] - first[title(b)] })
	last := ""
	for _, m := range measures {
		if title(m) != last {
			last = title(m)
			fmt.Fprintf(out, "\n## %s\n\n| Services |", last)
			for _, row := range m.Rows {
				fmt.Fprintf(out, " %s |", row.Candidate)
			}
			fmt.Fprintf(out, " resolution |\n|%s\n", strings.Repeat("---|", len(m.Rows)+2))
		}
		fmt.Fprintf(out, "| %d |", m.Services)
		for _, row := range m.Rows {
			fmt.Fprintf(out, " %s |", cell(m, row))
		}
		fmt.Fprintf(out, " %s |\n", resolution(m))
	}
}

// pods is the CNI plugin's part.
func pods(out *strings.Builder, r bench.CNIReport) {
	fmt.Fprintf(out, "\n## The CNI plugin\n\n%d blocks, starting `fairlead-cni` takes %.2f ms; resolution %.0f %%.\n\n| figure | median | 95 %% interval | wanted |\n|---|---|---|---|\n",
		r.Blocks, r.StartMs, 100*r.Resolution)
	for _, f := range r.Figures {
		fmt.Fprintf(out, "| %s | %.2f %s | %.2f to %.2f | %s |\n", f.Name, f.Estimate, f.Unit, f.Low, f.High, f.Wanted())
	}
}

// mainFigures are the figures that the page has.
var mainFigures = map[string]bool{
	"exchange": true, "connect": true, "cpu": true, "Gbit/s": true,
	"cold sync": true, "warm sync": true, "change": true, "resident": true, "maps": true, "failed": true,
}

func resolution(m datapath.Measure) string {
	if m.Resolution == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f %%", 100*m.Resolution)
}

func cell(m datapath.Measure, row datapath.Row) string {
	switch {
	case row.Wrong != "":
		return firstLine(row.Verdict())
	case row.Median == nil:
		return "–"
	case m.Base == datapath.Direct && row.Ratio != nil && row.Candidate != m.Base:
		return fmt.Sprintf("× %.2f (%.2f to %.2f)", row.Ratio.Estimate, row.Ratio.Low, row.Ratio.High)
	case row.Median.Low == row.Median.High:
		return fmt.Sprintf("%.4g %s", row.Median.Estimate, m.Unit)
	}
	return fmt.Sprintf("%.4g %s (%.4g to %.4g)", row.Median.Estimate, m.Unit, row.Median.Low, row.Median.High)
}

// busy says that more programs wanted to run than there are processors. Afterwards most of
// the load is the run's own.
func busy(m datapath.Machine) bool { return m.LoadBefore[0] > float64(m.CPUs) }

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
