package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/bench"
)

func newBenchRoutes() *cobra.Command {
	opts := bench.RoutesOptions{}
	var output string
	var steal float64
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "Measure TCP streams between pods of two nodes",
		Long: `Measure TCP streams between pods of two nodes.

A lab of three nodes is built, the third one behind a router, and beside it a bare
path: veths and routes alone, with as many routers in between. One TCP stream at a
time, over each path and both families, all in each block in random order: direct
and VXLAN are compared with bare in the same block, and bare with itself. The
figures are the median of all blocks, and its 95 % interval.`,
		Example: `  fairlead-lab bench routes
  fairlead-lab bench routes --mode iptables --blocks 60 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.MaxSteal = steal / 100
			if output != "text" && output != "json" {
				return fmt.Errorf("print output as %q: allowed are text and json", output)
			}
			if err := prepareBenchRoutes(&opts); err != nil {
				return err
			}
			return runBenchRoutes(cmd, opts, output == "json")
		},
	}
	cmd.Flags().StringVar(&opts.BinDir, "bin-dir", "", "where fairlead and fairlead-cni are (default: beside fairlead-lab)")
	cmd.Flags().StringVar(&opts.Mode, "mode", "auto", "what the nodes' proxies program: iptables, ebpf or auto")
	cmd.Flags().IntVar(&opts.Blocks, "blocks", 30, "number of blocks")
	cmd.Flags().DurationVar(&opts.Slice, "slice", 200*time.Millisecond, "how long each stream is measured in a block")
	cmd.Flags().Uint64Var(&opts.Seed, "seed", 0, "for the order in each block (default: random)")
	cmd.Flags().Float64Var(&steal, "max-steal", 2, "percentage of processor time taken by other machines with which a block does not count")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one object on standard output, the text on standard error")
	return cmd
}

// prepareBenchRoutes completes the options and says what is wrong with them.
func prepareBenchRoutes(opts *bench.RoutesOptions) (err error) {
	if opts.Blocks < 2 {
		return fmt.Errorf("measure %d blocks: at least 2 are needed", opts.Blocks)
	}
	if opts.Slice < time.Millisecond || opts.Slice > time.Minute {
		return fmt.Errorf("measure each stream for %s: allowed are 1ms to 1m", opts.Slice)
	}
	if os.Geteuid() != 0 {
		return errors.New("make network namespaces: this needs root")
	}
	if opts.Seed == 0 {
		opts.Seed = rand.Uint64()
	}
	if opts.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find programs: %w", err)
		}
		opts.BinDir = filepath.Dir(self)
	}
	opts.BinDir, err = findProgram(opts.BinDir, "fairlead-cni", "run make build first")
	return err
}

func runBenchRoutes(cmd *cobra.Command, opts bench.RoutesOptions, asJSON bool) error {
	text := cmd.OutOrStdout()
	if asJSON {
		text = cmd.ErrOrStderr()
	}
	opts.Progress = progressLines(text)
	report, err := bench.Routes(cmd.Context(), opts)
	if err != nil {
		return err
	}
	if err := printRoutesReport(text, report); err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), report)
	}
	return nil
}

func printRoutesReport(out io.Writer, r bench.RoutesReport) error {
	fmt.Fprintf(out, "\n%d blocks, %d discarded, seed %d, proxies in mode %s\n\n", r.Blocks, r.Discarded, r.Seed, r.Mode)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "stream\tGbit/s, p50")
	for _, name := range slices.Sorted(maps.Keys(r.Rates)) {
		fmt.Fprintf(w, "%s\t%.2f\n", name, r.Rates[name])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := printFigures(out, r.Figures); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nTwo streams over the same path may differ by %.0f %% here: a smaller difference means nothing.\n", 100*r.Resolution)
	return nil
}
