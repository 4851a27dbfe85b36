// Command fairlead is Fairlead's program for nodes: the service proxy and the
// tools around it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam/disk"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		hostname: os.Hostname, bootID: disk.BootID, now: time.Now,
	})
	stop()
	os.Exit(code)
}

// env is what the commands know of the world around them.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	hostname       func() (string, error)
	bootID         func() (string, error) // of the running boot of the kernel
	now            func() time.Time
}

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // what was asked for could not be done
	exitUsage  = 2 // what was asked for makes no sense; nothing was changed
)

// usageError is wrong flags or configuration.
type usageError struct{ error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// run executes a command line and returns the exit code.
func run(ctx context.Context, args []string, e env) int {
	root := rootCommand(e)
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		onlyOthers(completion)
	}
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	text := strings.TrimSpace(err.Error())
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		text += " (this is not root)"
	}
	fmt.Fprintln(e.stderr, "fairlead:", text)
	if usage := (usageError{}); errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// rootCommand has all commands.
func rootCommand(e env) *cobra.Command {
	root := onlyOthers(&cobra.Command{
		Use:           "fairlead",
		Short:         "Services for the pods of a Kubernetes node",
		SilenceUsage:  true,
		SilenceErrors: true,
	})
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w: see '%s --help'", err, cmd.CommandPath())
	})
	root.AddCommand(proxyCommand(e), cleanupCommand(e), ipamCommand(e), nodeCommand(e),
		statusCommand(e), servicesCommand(e), traceCommand(e), doctorCommand(e), versionCommand(e), manCommand())
	return root
}

// onlyOthers makes a command one that only has others. Without this, cobra reports an unknown
// one with exit code 1, or not at all.
func onlyOthers(cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q: see '%s --help'", args[0], cmd.CommandPath())
		}
		return cmd.Help()
	}
	return cmd
}

func versionCommand(e env) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(e.stdout, version)
			return err
		},
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("argument %q: '%s' takes none", args[0], cmd.CommandPath())
	}
	return nil
}
