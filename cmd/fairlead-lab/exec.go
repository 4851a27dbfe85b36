package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netns"

	"github.com/fairlead/fairlead/e2e/lab"
)

func newExec() *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "exec POD|NODE -- COMMAND [ARGUMENT...]",
		Short: "Run a command in a pod or on a node",
		Long: `Run a command in the network namespace of a pod or a node.

The command takes the place of fairlead-lab: the terminal, standard input and
output, signals and the exit status are its own.`,
		Example: `  fairlead-lab exec client-1 -- ip address
  fairlead-lab exec client-1 -- bash
  fairlead-lab exec node-1 -- iptables-save -t nat`,
		Args: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("exec wants one pod or node, then -- and a command")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			state, err := pick(id)
			if err != nil {
				return err
			}
			warn(cmd, state)
			return execInside(state, args[0], args[1:])
		},
	}
	addID(cmd, &id)
	return cmd
}

// execInside becomes the command. It returns only if it cannot.
func execInside(state lab.State, name string, command []string) error {
	path, err := state.NetnsPath(name)
	if err != nil {
		return err
	}
	file, err := exec.LookPath(command[0])
	if err != nil {
		return err
	}
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("open network namespace of %s: %w", name, err)
	}
	// A namespace belongs to a thread, and execve keeps the one of the thread
	// that calls it.
	runtime.LockOSThread()
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace of %s: %w", name, err)
	}
	cgroup, err := state.Cgroup(name)
	if err == nil && cgroup != nil {
		err = cgroup.Enter()
	}
	if err != nil {
		return fmt.Errorf("enter cgroup of %s: %w", name, err)
	}
	return fmt.Errorf("run %s: %w", file, syscall.Exec(file, command, os.Environ()))
}
