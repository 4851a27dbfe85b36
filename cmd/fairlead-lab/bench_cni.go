package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/bench"
)

func newBenchCNI() *cobra.Command {
	opts := defaultPods()
	var output string
	var steal float64
	cmd := &cobra.Command{
		Use:   "cni",
		Short: "Measure ADD and DEL of the CNI plugin",
		Long: `Measure ADD and DEL of the CNI plugin.

Pods are attached and detached by exec, as a container runtime does: one by one
and several at once, with no and with many addresses held, over IPv4, IPv6 and
both. With --reference the same is done to the reference plugins bridge and
host-local in turn. Every case is on a node of its own, and all are measured in
each block, in random order. Figures compare within blocks: the median of all
blocks, and its 95 % interval.`,
		Example: `  fairlead-lab bench cni
  fairlead-lab bench cni --reference /opt/cni/bin
  fairlead-lab bench cni --held 1000 --at-once 30 --blocks 40 -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opts.MaxSteal = steal / 100
			if output != "text" && output != "json" {
				return fmt.Errorf("print output as %q: allowed are text and json", output)
			}
			if err := prepareBenchCNI(&opts); err != nil {
				return err
			}
			return runBenchCNI(cmd, opts, output == "json")
		},
	}
	cmd.Flags().StringVar(&opts.BinDir, "bin-dir", "", "where fairlead-cni is (default: beside fairlead-lab)")
	cmd.Flags().StringVar(&opts.Reference, "reference", "", referenceUsage)
	cmd.Flags().IntVar(&opts.Blocks, "blocks", opts.Blocks, "number of blocks")
	cmd.Flags().IntSliceVar(&opts.Held, "held", opts.Held, "numbers of addresses that are held already")
	cmd.Flags().IntSliceVar(&opts.AtOnce, "at-once", opts.AtOnce, "numbers of pods that come, and go, at once")
	cmd.Flags().Uint64Var(&opts.Seed, "seed", 0, "for the order in each block (default: random)")
	cmd.Flags().Float64Var(&steal, "max-steal", 2, "percentage of processor time taken by other machines with which a block does not count")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, or json: one object on standard output, the text on standard error")
	return cmd
}

const referenceUsage = "where the reference plugins bridge and host-local are (default: without them)"

// defaultPods is what is measured of the CNI plugin unless something else is asked
// for.
func defaultPods() bench.CNIOptions {
	return bench.CNIOptions{Blocks: 20, Held: []int{1_000, 10_000, 60_000}, AtOnce: []int{16, 30}}
}

// The greatest numbers that can be asked for: pods at once as a bridge has ports,
// addresses as the networks of the measurement have.
const (
	maxAtOnce = 1000
	maxHeld   = 1_000_000
)

// prepareBenchCNI completes the options and says what is wrong with them.
func prepareBenchCNI(opts *bench.CNIOptions) error {
	if opts.Blocks < 2 {
		return fmt.Errorf("measure %d blocks: at least 2 are needed", opts.Blocks)
	}
	for _, n := range opts.AtOnce {
		if n < 2 || n > maxAtOnce {
			return fmt.Errorf("attach %d pods at once: allowed are 2 to %d", n, maxAtOnce)
		}
	}
	for _, n := range opts.Held {
		if n < 1 || n > maxHeld {
			return fmt.Errorf("hold %d addresses: allowed are 1 to %d", n, maxHeld)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("make network namespaces: this needs root")
	}
	if opts.Seed == 0 {
		opts.Seed = rand.Uint64()
	}
	return findPlugins(opts)
}

// findPlugins makes the directories absolute, as CNI_PATH wants them, and looks
// whether the programs are there.
func findPlugins(opts *bench.CNIOptions) (err error) {
	if opts.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find programs: %w", err)
		}
		opts.BinDir = filepath.Dir(self)
	}
	if opts.BinDir, err = findProgram(opts.BinDir, "fairlead-cni", "run make build first"); err != nil {
		return err
	}
	if opts.Reference == "" {
		return nil
	}
	for _, program := range []string{"bridge", "host-local"} {
		if opts.Reference, err = findProgram(opts.Reference, program, "the reference plugins are at github.com/containernetworking/plugins"); err != nil {
			return err
		}
	}
	return nil
}

func findProgram(dir, program, hint string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find program %s: %w", program, err)
	}
	if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
		return "", fmt.Errorf("find program %s in %s: %s", program, dir, hint)
	}
	return dir, nil
}

func runBenchCNI(cmd *cobra.Command, opts bench.CNIOptions, asJSON bool) error {
	text := cmd.OutOrStdout()
	if asJSON {
		text = cmd.ErrOrStderr()
	}
	opts.Progress = progressLines(text)
	report, err := bench.CNI(cmd.Context(), opts)
	if err != nil {
		return err
	}
	if err := printCNIReport(text, report); err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), report)
	}
	return nil
}

// progressLines prints each step with the time since now.
func progressLines(out io.Writer) func(string) {
	began := time.Now()
	return func(line string) { fmt.Fprintf(out, "%6.1f s  %s\n", time.Since(began).Seconds(), line) }
}

func printCNIReport(out io.Writer, r bench.CNIReport) error {
	fmt.Fprintf(out, "\n%d blocks, %d discarded, seed %d; starting fairlead-cni takes %.2f ms\n\n", r.Blocks, r.Discarded, r.Seed, r.StartMs)
	if err := printTimes(out, r.Setups); err != nil {
		return err
	}
	if err := printFigures(out, r.Figures); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nTwo candidates that are the same may differ by %.0f %% here: a smaller difference means nothing.\n", 100*r.Resolution)
	return nil
}

func printTimes(out io.Writer, setups []bench.Times) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "plugin\taddresses\theld\tat once\tADD p50 ms\tp90 ms\tcpu ms\tADD/s\tDEL p50 ms\tp90 ms\tcpu ms\tDEL/s\t")
	for _, t := range setups {
		addresses := t.Family
		if t.Masquerade {
			addresses += ", ipMasq"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t\n", t.Plugin, addresses, t.Held, t.AtOnce, percentileCells(t.Add), percentileCells(t.Del))
	}
	return w.Flush()
}

func percentileCells(p bench.Percentiles) string {
	rate := ""
	if p.PerSecond != 0 {
		rate = fmt.Sprintf("%.0f", p.PerSecond)
	}
	return fmt.Sprintf("%.2f\t%.2f\t%.2f\t%s", p.P50Ms, p.P90Ms, p.CPUMs, rate)
}

func printFigures(out io.Writer, figures []bench.Figure) error {
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "figure\tmedian\t95 % interval\twanted")
	for _, f := range figures {
		fmt.Fprintf(w, "%s\t%.2f %s\t%.2f to %.2f\t%s\n", f.Name, f.Estimate, f.Unit, f.Low, f.High, f.Wanted())
	}
	return w.Flush()
}
