package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/bench/datapath"
)

// benchFlags are the flags of 'fairlead-lab bench' as given.
type benchFlags struct {
	datapath.Options
	out   string
	steal float64
	cni   bool             // measure the CNI plugin too
	pods  bench.CNIOptions // how
}

func newBench() *cobra.Command {
	var f benchFlags
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the ways that a connection to a Service can take",
		Long: `Measure the ways that a connection to a Service can take through a node:
fairlead proxy with iptables and with eBPF, kube-proxy, and, to compare with, no
proxy at all.

Each candidate is on a node of its own, with clients and backends, all in network
namespaces. All are measured in short slices in turn, in an order that is drawn
for each block of slices, and compared within the block. A candidate is checked
first: one that spreads connections wrongly, shows the wrong source address or
loses a connection is shown as wrong, without figures.

With --cni, and always in the full suite, the CNI plugin is measured after the
proxies, as 'fairlead-lab bench cni' does.

A table is printed, and the directory --out gets results.json, report.html, which
needs nothing beside it, and its charts as SVG and PNG.`,
		Example: `  fairlead-lab bench
  fairlead-lab bench --suite full --out full
  fairlead-lab bench --candidates direct,iptables-legacy,iptables-nft --services 1,100
  fairlead-lab bench --cni --reference /opt/cni/bin
  fairlead-lab bench compare before/results.json after/results.json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("measure %q: allowed are cni, routes and compare, or none", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepareBench(&f); err != nil {
				return err
			}
			return runBench(cmd, f)
		},
	}
	cmd.Flags().StringVar(&f.Suite, "suite", "quick", "quick, some minutes, or full, an hour")
	cmd.Flags().IntSliceVar(&f.Services, "services", []int{1, 1000, 10_000}, "numbers of Services to measure with")
	cmd.Flags().StringSliceVar(&f.Candidates, "candidates", []string{"direct", "iptables", "ebpf"}, "what to compare: "+strings.Join(datapath.Candidates, ", "))
	cmd.Flags().IntVar(&f.Blocks, "blocks", 0, "number of blocks of everything (default: the suite's)")
	cmd.Flags().StringVar(&f.KubeProxy, "kube-proxy", "", "the program kube-proxy, for the candidates of that name")
	cmd.Flags().StringVar(&f.out, "out", "bench", "directory for the results")
	cmd.Flags().StringVar(&f.BinDir, "bin-dir", "", "where fairlead is (default: beside fairlead-lab)")
	cmd.Flags().Uint64Var(&f.Seed, "seed", 0, "for the order in each block (default: random)")
	cmd.Flags().Float64Var(&f.steal, "max-steal", 2, "percentage of processor time taken by other machines with which a block does not count")
	cmd.Flags().BoolVar(&f.cni, "cni", false, "measure the CNI plugin too (default: in the suite full)")
	cmd.Flags().StringVar(&f.pods.Reference, "reference", "", referenceUsage)
	cmd.AddCommand(newBenchCNI(), newBenchRoutes(), newBenchCompare(), newBenchLoad())
	return cmd
}

// prepareBench completes the options and says what is wrong with them.
func prepareBench(f *benchFlags) error {
	if !slices.Contains(datapath.Suites, f.Suite) {
		return fmt.Errorf("run suite %q: allowed are %s", f.Suite, strings.Join(datapath.Suites, " and "))
	}
	if f.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find programs: %w", err)
		}
		f.BinDir = filepath.Dir(self)
	}
	if f.Blocks < 0 || f.Blocks == 1 {
		return fmt.Errorf("measure %d blocks: at least 2 are needed", f.Blocks)
	}
	slices.Sort(f.Services)
	f.Services = slices.Compact(f.Services)
	if len(f.Services) == 0 {
		return errors.New("measure with no number of Services: give one by --services")
	}
	if f.Seed == 0 {
		f.Seed = rand.Uint64()
	}
	f.MaxSteal = f.steal / 100
	if err := datapath.Preflight(f.Options); err != nil {
		return err
	}
	if err := f.preparePods(); err != nil {
		return err
	}
	return writable(f.out)
}

// preparePods completes the options of the CNI plugin's part.
func (f *benchFlags) preparePods() error {
	f.cni = f.cni || f.Suite == "full"
	if !f.cni && f.pods.Reference != "" {
		return errors.New("compare with the reference plugins of --reference: they are measured with --cni only")
	}
	if !f.cni {
		return nil
	}
	reference := f.pods.Reference
	f.pods = defaultPods()
	f.pods.Reference, f.pods.BinDir, f.pods.Seed, f.pods.MaxSteal = reference, f.BinDir, f.Seed, f.MaxSteal
	if f.Blocks > 0 {
		f.pods.Blocks = f.Blocks
	}
	return prepareBenchCNI(&f.pods)
}

// writable makes the directory and says what is in the way of files in it.
func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory for the results: %w", err)
	}
	probe, err := os.CreateTemp(dir, ".fairlead-bench-")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

func runBench(cmd *cobra.Command, f benchFlags) error {
	if err := datapath.Sweep(); err != nil {
		// It is in nobody's way: a new run has a name of its own.
		cmd.PrintErrln("fairlead-lab:", err)
	}
	show := newBenchProgress(cmd.OutOrStdout())
	f.Progress = show.update
	results, err := datapath.Run(cmd.Context(), f.Options)
	show.close()
	if len(results.Measures) == 0 {
		return err
	}
	if f.cni && err == nil {
		results.CNI, err = measurePods(cmd, f.pods)
	}
	if failed := printResults(cmd.OutOrStdout(), results); failed != nil {
		return errors.Join(err, failed)
	}
	return errors.Join(err, writeResults(cmd, f.out, results))
}

// measurePods is the CNI plugin's part. Without it the rest is as good.
func measurePods(cmd *cobra.Command, opts bench.CNIOptions) (*bench.CNIReport, error) {
	fmt.Fprintln(cmd.OutOrStdout(), "\nCNI plugin")
	opts.Progress = progressLines(cmd.OutOrStdout())
	report, err := bench.CNI(cmd.Context(), opts)
	if err != nil {
		return nil, fmt.Errorf("measure the CNI plugin: %w", err)
	}
	return &report, printCNIReport(cmd.OutOrStdout(), report)
}
