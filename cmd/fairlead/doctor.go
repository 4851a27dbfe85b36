package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cmd/fairlead/doctor"
	"github.com/fairlead/fairlead/proxy/bpf"
)

// errNotWell is that something does not work on the node; what is printed.
var errNotWell = errors.New("something on this node keeps pods or Services from working")

func doctorCommand(e env) *cobra.Command {
	var confDir, cgroupRoot string
	var f askFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps pods or Services of this node from working",
		Long: `Looks at settings of the kernel, at what other programs left behind and at what
is missing. Of each trouble it says why it matters and how to mend it; it mends
nothing itself. The exit code is 1 if something does not work, 0 if all does,
whatever the warnings.`,
		Example: `  fairlead doctor
  fairlead doctor -o json | jq '.[] | select(.state != "ok")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			node := doctor.Host(confDir)
			node.Output, node.EndSockets = runOutput, bpf.CanEndSockets
			node.TryEBPF = func() error { return bpf.Try(cgroupRoot) }
			found := doctor.Look(cmd.Context(), node)
			done, err := f.printAs(e.stdout, found)
			if !done {
				printFindings(e.stdout, found)
			}
			if err == nil && doctor.Worst(found) == doctor.Bad {
				err = errNotWell
			}
			return err
		},
	}
	cmd.Flags().StringVar(&confDir, "cni-conf-dir", defaultConfDir, "directory of the runtime's network configurations")
	cmd.Flags().StringVar(&cgroupRoot, "cgroup-root", "", "that of 'fairlead proxy'")
	f.registerOutput(cmd, "json", "yaml")
	return cmd
}

func runOutput(ctx context.Context, name string, args ...string) ([]byte, error) {
	return exec.CommandContext(ctx, name, args...).Output()
}

// printFindings prints the worst last, where the eye is.
func printFindings(w io.Writer, found []doctor.Finding) {
	order := []doctor.State{doctor.Well, doctor.Warning, doctor.Bad}
	slices.SortStableFunc(found, func(a, b doctor.Finding) int {
		return slices.Index(order, a.State) - slices.Index(order, b.State)
	})
	for _, f := range found {
		fmt.Fprintf(w, "%-8s %s: %s\n", f.State, f.Check, f.What)
		if f.State != doctor.Well {
			indent := strings.Repeat(" ", 9)
			fmt.Fprintf(w, "%swhy:  %s\n%smend: %s\n", indent, f.Why, indent, f.Mend)
		}
	}
}
