package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/e2e/lab"
)

// addID adds the flag that pick takes.
func addID(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "id", "", "which lab, if there are several")
}

var errNone = errors.New("no lab is up: start one with fairlead-lab up")

// pick finds the lab of this name, or the only one if the name is "".
func pick(id string) (lab.State, error) {
	labs, err := lab.List()
	if err != nil {
		return lab.State{}, err
	}
	var names []string
	for _, s := range labs {
		if s.ID == id || id == "" && len(labs) == 1 {
			return s, nil
		}
		names = append(names, s.ID)
	}
	switch {
	case len(labs) == 0:
		return lab.State{}, errNone
	case id == "":
		return lab.State{}, fmt.Errorf("several labs are up, say which with --id: %s", strings.Join(names, ", "))
	}
	return lab.State{}, fmt.Errorf("no lab %s is up, only %s", id, strings.Join(names, ", "))
}

// warn tells of proxies of the lab that run no more.
func warn(cmd *cobra.Command, state lab.State) {
	for _, err := range state.ProxyErrors() {
		cmd.PrintErrln("fairlead-lab:", err)
	}
}
