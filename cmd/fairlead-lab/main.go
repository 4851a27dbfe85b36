// Fairlead-lab builds a cluster of network namespaces on this machine, driven
// by fairlead and fairlead-cni, to try them, to show them and to compare them.
//
// This package is the command line: flags, signals, exit codes, what is printed
// how. The cluster is package e2e/lab, the story of the demo package e2e/demo.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitFailed = 1 // a check of the demo failed
	exitUsage  = 2 // wrong usage, or the machine lacks something
)

// errFailed ends a command that has already said what failed.
var errFailed = errors.New("a check failed")

func main() {
	// SIGHUP: the terminal is closed. SIGPIPE: standard output is. Both must
	// leave as little behind as Ctrl-C does.
	ctx, stop := signal.NotifyContext(context.Background(),
		syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := newRoot().ExecuteContext(ctx)
	stop()
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errFailed):
		return exitFailed
	}
	fmt.Fprintln(os.Stderr, "fairlead-lab:", err)
	return exitUsage
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "fairlead-lab",
		Short: "A cluster of network namespaces on this machine, run by Fairlead",
		Long: `A cluster of network namespaces on this machine, run by Fairlead.

Each node is a network namespace with a real fairlead proxy, each pod one that
the real fairlead-cni attached, with a server in it. Nothing else on the machine
is changed, several labs can run side by side, and all commands need root.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(newDemo(), newUp(), newDown(), newExec(), newStatus(), newAsk(), newServe(), newBench())
	return root
}
