package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/bench/datapath"
	"github.com/fairlead/fairlead/e2e/bench/report"
)

// printResults prints a table for each thing that was done.
func printResults(out io.Writer, r datapath.Results) error {
	if r.Interrupted {
		fmt.Fprintln(out, "\nInterrupted. What was measured until then:")
	}
	last := ""
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, m := range r.Measures {
		title := fmt.Sprintf("%s, %s", m.Title, countServices(m.Services))
		if title != last {
			fmt.Fprintf(w, "\n%s\n", title)
			last = title
		}
		for _, row := range m.Rows {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", m.Name, row.Candidate, cells(m, row))
		}
	}
	return w.Flush()
}

func countServices(n int) string {
	if n == 1 {
		return "1 Service"
	}
	return fmt.Sprintf("%d Services", n)
}

func cells(m datapath.Measure, r datapath.Row) string {
	if flaw := r.Verdict(); flaw != "" {
		return flaw
	}
	if r.Median == nil {
		return "not measured"
	}
	text := fmt.Sprintf("%.4g %s", r.Median.Estimate, m.Unit)
	if r.Ratio != nil && r.Candidate != m.Base {
		text += fmt.Sprintf("\t× %.3f\t%.3f to %.3f", r.Ratio.Estimate, r.Ratio.Low, r.Ratio.High)
	}
	return text
}

// writeResults writes the files of a run and says where they are.
func writeResults(cmd *cobra.Command, dir string, r datapath.Results) error {
	path := filepath.Join(dir, "results.json")
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	shown, err := report.Write(dir, r)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "\nResults: %s\nReport:  %s\n", path, shown)
	return nil
}
