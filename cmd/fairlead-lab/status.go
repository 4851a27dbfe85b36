package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/lab"
)

func newStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "List the clusters that are up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			labs, err := lab.List()
			if err != nil {
				return err
			}
			if len(labs) == 0 {
				fmt.Println("no lab is up")
			}
			for _, s := range labs {
				printState(s)
				warn(cmd, s)
			}
			return nil
		},
	}
}

// printState prints a lab: its nodes, and indented their pods.
func printState(s lab.State) {
	fmt.Printf("lab %s, mode %s\n", s.ID, s.Mode)
	for _, n := range s.Nodes {
		fmt.Printf("  %-14s  %s\n", n.Name, joinAddrs(n.Addresses))
		for _, p := range s.Pods {
			if p.Node == n.Name {
				fmt.Printf("    %-12s  %s\n", p.Name, joinAddrs(p.Addresses))
			}
		}
	}
}

func joinAddrs(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}
