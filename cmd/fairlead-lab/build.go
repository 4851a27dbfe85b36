package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/lab"
)

// buildFlags adds the flags of commands that build a lab.
func buildFlags(cmd *cobra.Command, opts *lab.Options) {
	cmd.Flags().IntVar(&opts.Nodes, "nodes", 2, fmt.Sprintf("number of nodes, 1 to %d", lab.MaxNodes))
	cmd.Flags().BoolVar(&opts.Routed, "routed", false, "the last node is on a link of its own, behind a router")
	cmd.Flags().BoolVar(&opts.Macvlan, "macvlan", false, "nodes have a second network too, of macvlan pods with addresses of a pool: see fairlead-lab exec NODE -- fairlead ipam show")
	cmd.Flags().StringVar(&opts.Mode, "mode", "auto", "what the proxies program: iptables, ebpf or auto")
	cmd.Flags().StringVar(&opts.BinDir, "bin-dir", "", "where fairlead and fairlead-cni are (default: beside fairlead-lab)")
}

// prepare completes the options, says what is missing, and removes what labs
// whose owner was killed have left.
func prepare(cmd *cobra.Command, opts *lab.Options) error {
	if opts.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find programs: %w", err)
		}
		opts.BinDir = filepath.Dir(self)
	}
	if err := lab.Preflight(*opts); err != nil {
		return err
	}
	if err := lab.Sweep(); err != nil {
		// It is in nobody's way: a new lab has a name of its own.
		cmd.PrintErrln("fairlead-lab:", err)
	}
	return nil
}
