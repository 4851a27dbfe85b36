package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func cleanupCommand(e env) *cobra.Command {
	var f backendFlags
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that Fairlead programmed into this node's kernel",
		Long: `Removes what 'fairlead proxy' and 'fairlead node' programmed, and nothing else:
Services stop working on this node unless another proxy serves them, and its pods
are cut off from those of other nodes. It may be run at any time and twice.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			backend, err := f.newBackend(cmd.Context())
			if err != nil {
				return err
			}
			if err := errors.Join(backend.Cleanup(cmd.Context()), cleanupNode()); err != nil {
				return err
			}
			_, err = fmt.Fprintln(e.stdout, "removed all rules and routes of Fairlead")
			return err
		},
	}
	f.register(cmd)
	return cmd
}
