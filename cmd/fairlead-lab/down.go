package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/lab"
)

func newDown() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Take a cluster down",
		Long:  "End every process of a cluster that up has built and remove all that it owns.",
		Example: `  fairlead-lab down
  fairlead-lab down --id blue`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// Also what labs whose owner was killed have left: it has no name
			// that a user could know.
			return errors.Join(lab.Sweep(), takeDown(id))
		},
	}
	addID(cmd, &id)
	return cmd
}

func takeDown(id string) error {
	state, err := pick(id)
	if id == "" && errors.Is(err, errNone) {
		fmt.Println("no lab is up")
		return nil
	}
	if err != nil {
		return err
	}
	if !state.Kept {
		return fmt.Errorf("take lab %s down: process %d is using it and removes it when it ends", state.ID, state.Owner.PID)
	}
	if err := lab.Remove(state.ID); err != nil {
		return err
	}
	fmt.Printf("lab %s is gone\n", state.ID)
	return nil
}
