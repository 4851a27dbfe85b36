package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/cmd/fairlead/doctor"
	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/inspect"
)

// errNotWell is that something does not work on the node; what is printed.
var errNotWell = errors.New("something on this node keeps pods or Services from working")

func doctorCommand(e env) *cobra.Command {
	var confDir, cgroupRoot string
	var f doctorFlags
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps pods or Services of this node from working",
		Long: `Looks at settings of the kernel, at ranges of addresses that clash, at what other
programs left behind and at what is missing; what it takes the whole cluster to know it
asks 'fairlead node' for, if that runs here. Of each trouble it says why it matters and how to mend it; it mends
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
			node.Unprivileged = os.Geteuid() != 0
			node.Output, node.EndSockets = runOutput, bpf.CanEndSockets
			node.TryEBPF = func() error { return bpf.Try(cgroupRoot) }
			node.Strangers = func() []string {
				names, _ := bpf.Strangers(cgroupRoot) // what keeps that from being told, the check of eBPF tells
				return names
			}
			node.Agent, node.Virtual = f.agent, f.virtual
			found := doctor.Look(cmd.Context(), node)
			done, err := f.printAs(e.stdout, found)
			if !done {
				printFindings(e.stdout, found, paletteFor(e))
			}
			if err == nil && doctor.Worst(found) == doctor.Bad {
				err = errNotWell
			}
			return err
		},
	}
	cmd.Flags().StringVar(&confDir, "cni-conf-dir", defaultConfDir, "directory of the runtime's network configurations")
	cmd.Flags().StringVar(&cgroupRoot, "cgroup-root", "", "that of 'fairlead proxy'")
	f.registerNodeSocket(cmd)
	f.register(cmd, "json", "yaml")
	return cmd
}

// doctorFlags say whom to ask for what is not the kernel's.
type doctorFlags struct {
	askFlags
	nodeSocketFlag
}

// agent asks 'fairlead node'; nil: it does not answer.
func (f *doctorFlags) agent(ctx context.Context) *doctor.Agent {
	var s nodeStatus
	if f.askNode(ctx, &s) != nil {
		return nil
	}
	return &doctor.Agent{MTU: s.MTU, Problems: s.Problems}
}

// virtual asks 'fairlead proxy' for the addresses of Services: none if it does not
// answer.
func (f *doctorFlags) virtual(ctx context.Context) []netip.Prefix {
	var rows []inspect.Row
	if f.ask(ctx, "/services?kernel=no", &rows) != nil {
		return nil
	}
	var all []netip.Prefix
	for _, row := range rows {
		if addr := row.Destination.Addr(); addr.IsValid() && !addr.IsUnspecified() {
			all = append(all, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	return all
}

func runOutput(ctx context.Context, name string, args ...string) ([]byte, error) {
	return exec.CommandContext(ctx, name, args...).Output()
}

// printFindings prints the worst last, where the eye is.
func printFindings(w io.Writer, found []doctor.Finding, p palette) {
	order := []doctor.State{doctor.Well, doctor.Warning, doctor.Bad}
	colours := []int{green, yellow, red}
	rank := func(f doctor.Finding) int { return slices.Index(order, f.State) }
	slices.SortStableFunc(found, func(a, b doctor.Finding) int { return rank(a) - rank(b) })
	var counts [3]int
	for _, f := range found {
		counts[rank(f)]++
		fmt.Fprintf(w, "%s %s: %s\n", p.paint(colours[rank(f)], fmt.Sprintf("%-8s", f.State)), f.Check, f.What)
		if f.State != doctor.Well {
			indent := strings.Repeat(" ", 9)
			fmt.Fprintf(w, "%swhy:  %s\n%smend: %s\n", indent, f.Why, indent, f.Mend)
		}
	}
	fmt.Fprintf(w, "\n%d ok, %d warning, %d bad\n", counts[0], counts[1], counts[2])
}
