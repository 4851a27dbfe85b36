package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/bench/datapath"
)

func newBenchCompare() *cobra.Command {
	return &cobra.Command{
		Use:   "compare OLD.json NEW.json",
		Short: "Say what became better or worse from one run of bench to another",
		Long: `Say what became better or worse from one run of bench to another.

Figures of traffic are compared as ratios to direct, each of its own run, so that
two runs need not be of the same hour, nor of the same machine. Times and memory of
proxies are compared as they are. There is a change only where the intervals do not
touch and the figures differ by more than the resolution.

The exit status is 0 if nothing is worse, 1 if something is, 2 if the files could
not be compared.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			before, err := datapath.Read(args[0])
			if err != nil {
				return err
			}
			after, err := datapath.Read(args[1])
			if err != nil {
				return err
			}
			return compare(cmd.OutOrStdout(), before, after)
		},
	}
}

// compare prints what has changed. It fails if something is worse.
func compare(out io.Writer, before, after datapath.Results) error {
	all := datapath.Compare(before, after)
	counts, worse := map[datapath.Change]int{}, 0
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, d := range all {
		counts[d.Verdict]++
		if d.Regression() {
			worse++
		}
		if d.Verdict != datapath.Same {
			fmt.Fprintf(w, "%s\t%s\t%s: %s\t%s\t%s\n", d.Verdict, d.Candidate, d.Title, d.Name, countServices(d.Services), change(d))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d figures: %d the same, %d better, %d worse\n", len(all), counts[datapath.Same], counts[datapath.Faster], worse)
	if worse > 0 {
		return errFailed
	}
	return nil
}

func change(d datapath.Difference) string {
	switch d.Verdict {
	case datapath.NowFlawed:
		return d.Why
	case datapath.Faster, datapath.Slower:
		unit := " " + d.Unit
		if d.Base == datapath.Direct {
			unit = " × direct"
		}
		return fmt.Sprintf("%.3g (%.3g to %.3g) → %.3g (%.3g to %.3g)%s",
			d.Old.Estimate, d.Old.Low, d.Old.High, d.New.Estimate, d.New.Low, d.New.High, unit)
	}
	return ""
}
