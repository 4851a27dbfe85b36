package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam"
)

type checkFlags struct {
	ipamFlags
	netnsDirs []string
}

func ipamCheckCommand(e env) *cobra.Command {
	var f checkFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find addresses held for nobody, and addresses used without being held",
		Long: `Finds, and changes nothing:

  store     a file that is damaged or contradicts itself
  no-netns  an address held for a pod whose network namespace is gone: 'fairlead
            ipam release' frees it
  no-row    an address in a network namespace, of one of the ranges, that no pod
            holds: it will be given to a second pod

Of rows that name no namespace, as imported ones do, one is looked for that has the
address. What is found is looked at twice, for pods come and go. The exit code is 1
when anything is found.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return check(cmd.Context(), e, f) },
	}
	f.register(cmd)
	cmd.Flags().StringSliceVar(&f.netnsDirs, "netns-dir", []string{"/run/netns", "/var/run/netns"}, "directories in which the runtime keeps the network namespaces of pods")
	return cmd
}

// finding is one thing that is wrong.
type finding struct {
	Network   string `json:"network"`
	Kind      string `json:"kind"` // store, no-netns or no-row
	Address   string `json:"address,omitempty"`
	Container string `json:"container,omitempty"`
	Netns     string `json:"netns,omitempty"`
	Detail    string `json:"detail"`
}

func check(ctx context.Context, e env, f checkFlags) error {
	networks, err := f.networks()
	if err != nil {
		return err
	}
	for _, n := range networks {
		there, err := n.store.Exists()
		if err != nil {
			return err
		}
		if !there {
			return f.noStore(n)
		}
	}
	found, err := f.findTwice(ctx, e, networks)
	if err != nil {
		return err
	}
	return f.report(e, networks, found)
}

func (f checkFlags) report(e env, networks []network, found []finding) error {
	var table [][]string
	for _, one := range found {
		table = append(table, []string{one.Network, one.Kind, orDash(one.Address), orDash(short(one.Container)), one.Detail})
	}
	document := struct {
		OK       bool      `json:"ok"`
		Findings []finding `json:"findings"`
	}{len(found) == 0, append([]finding{}, found...)}
	if err := f.print(e.stdout, document, "NETWORK FOUND ADDRESS CONTAINER DETAIL", table); err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("check: found %s", counted(len(found), "problem"))
	}
	f.say(e.stdout, "checked %s in %s: nothing is wrong", counted(len(networks), "network"), f.dataDir)
	return nil
}

// findTwice looks twice where there is anything to see. A pod that comes or goes
// between two readings looks like a fault once.
func (f checkFlags) findTwice(ctx context.Context, e env, networks []network) ([]finding, error) {
	found, err := f.find(ctx, e, networks)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	again, err := f.find(ctx, e, networks)
	return slices.DeleteFunc(found, func(one finding) bool { return !slices.Contains(again, one) }), err
}

// find looks once.
func (f checkFlags) find(ctx context.Context, e env, networks []network) ([]finding, error) {
	boot, err := e.bootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	// A namespace may belong to another network than the one that is checked.
	all, err := ipamFlags{dataDir: f.dataDir, output: f.output}.networks()
	if err != nil {
		return nil, err
	}
	s := survey{boot: boot, now: e.now(), gives: map[string][]ipam.Usage{}}
	if s.namespaces, err = readNamespaces(f.netnsDirs); err != nil {
		return nil, err
	}
	for _, n := range all {
		s.read(ctx, n)
	}
	s.compare()
	return slices.DeleteFunc(s.found, func(one finding) bool {
		return !slices.ContainsFunc(networks, func(n network) bool { return n.name == one.Network })
	}), nil
}
