package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy/inspect"
)

// errUnhealthy is that a proxy does not do its work; why is printed.
var errUnhealthy = errors.New("the proxy does not do its work as it should")

func statusCommand(e env) *cobra.Command {
	var f askFlags
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node's proxy is",
		Long: `Asks this node's proxy how it is: what it programs and by what, where it learns of
objects, when the kernel last took a change, and what is wrong with objects. The
exit code is 0 if all is well with the proxy and 1 if not.`,
		Example: `  fairlead status
  fairlead status --watch
  fairlead status -o json | jq .frontends`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			for {
				err := f.status(cmd, e)
				if !watch {
					return err
				}
				if err != nil {
					fmt.Fprintln(e.stderr, "fairlead:", err)
				}
				select {
				case <-cmd.Context().Done():
					return nil
				case <-time.After(time.Second):
					fmt.Fprint(e.stdout, between(isTerminal(e.stdout)))
				}
			}
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "again every second until interrupted")
	f.register(cmd, "json", "yaml")
	return cmd
}

// status asks once and prints the answer.
func (f *askFlags) status(cmd *cobra.Command, e env) error {
	var s inspect.Status
	if err := f.ask(cmd.Context(), "/status", &s); err != nil {
		return err
	}
	done, err := f.printAs(e.stdout, s)
	if !done {
		err = printStatus(e.stdout, s, e.now(), palette(isTerminal(e.stdout) && os.Getenv("NO_COLOR") == ""))
	}
	if err == nil && !s.Healthy() {
		err = errUnhealthy
	}
	return err
}

// between is what divides one status from the next: on a terminal it takes the place
// of the one before.
func between(terminal bool) string {
	if terminal {
		return "\x1b[H\x1b[2J" // ECMA-48: cursor home, erase the screen
	}
	return "\n"
}

// palette says whether there are colours.
type palette bool

// The colours of ECMA-48 that mean something here.
const (
	red    = 31
	green  = 32
	yellow = 33
)

func (p palette) paint(colour int, text string) string {
	if !p {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, text)
}

func printStatus(w io.Writer, s inspect.Status, now time.Time, p palette) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", what, fmt.Sprintf(format, args...))
	}
	health := p.paint(green, "well")
	if !s.Healthy() {
		health = p.paint(red, "ill")
	}
	bad := func(what, format string, args ...any) { row(what, "%s", p.paint(yellow, fmt.Sprintf(format, args...))) }
	row("proxy", "%s: version %s on node %s, up for %s", health, s.Version, s.Node, ago(now, s.Started))
	row("data path", "%s (%s)", s.Mode, s.Backend)
	row("objects", "%s", s.Source)
	if s.Stale != "" {
		bad("", "not followed: %s", s.Stale)
	}
	row("kernel", "%s", kernelState(s, now))
	row("services", "%d destinations, %d pools, %d backends", s.Frontends, s.Pools, s.Backends)
	for _, path := range []string{"socket", "packet"} {
		if text := outcomesOf(s, path); text != "" {
			row(path+"s", "%s", text)
		}
	}
	for _, o := range s.Outcomes {
		if o.Trouble && o.Count > 0 {
			bad("trouble", "%d %ss: %s", o.Count, o.Path, o.Text)
		}
	}
	for _, c := range s.Conflicts {
		bad("conflict", "%s", c)
	}
	for _, name := range s.Quarantined {
		bad("quarantined", "%s: the kernel does not take it; see the proxy's log", name)
	}
	for _, p := range s.Problems {
		bad("left out", "%s", p)
	}
	return table.Flush()
}

// outcomesOf is how often what is no trouble came about, where it did.
func outcomesOf(s inspect.Status, path string) string {
	var parts []string
	for _, o := range s.Outcomes {
		if o.Path == path && !o.Trouble && o.Count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", o.Count, strings.ReplaceAll(o.Name, "_", " ")))
		}
	}
	return strings.Join(parts, ", ")
}

// kernelState says whether the kernel has what it should.
func kernelState(s inspect.Status, now time.Time) string {
	switch {
	case s.Error != "":
		return "the last change was not taken: " + s.Error
	case s.Synced.IsZero():
		return "not programmed yet"
	case s.Pending:
		return "a change is on its way"
	}
	return fmt.Sprintf("up to date, last changed %s ago in %s", ago(now, s.Synced), s.Took.Round(100*time.Microsecond))
}

func ago(now, then time.Time) time.Duration { return now.Sub(then).Round(time.Second) }
