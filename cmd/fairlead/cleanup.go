package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func cleanupCommand(e env) *cobra.Command {
	var f backendFlags
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that Fairlead programmed into this node's kernel",
		Long: `Removes what 'fairlead proxy' programmed, and nothing else: Services stop working
on this node unless another proxy serves them. It may be run at any time and twice.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			backend, err := f.newBackend(cmd.Context())
			if err != nil {
				return err
			}
			if err := backend.Cleanup(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(e.stdout, "removed all rules of Fairlead")
			return err
		},
	}
	f.register(cmd)
	return cmd
}
