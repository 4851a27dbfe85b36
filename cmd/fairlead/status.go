package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy/inspect"
)

// errUnhealthy is that something does not do its work; why is printed.
var errUnhealthy = errors.New("not all does its work as it should")

// statusFlags are the flags of 'fairlead status' as given.
type statusFlags struct {
	askFlags
	nodeSocketFlag
	watch bool
}

func statusCommand(e env) *cobra.Command {
	var f statusFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how Fairlead is on this node",
		Long: `Asks this node's proxy how it is: what it programs, by what and why by that, where
it learns of objects, when the kernel last took a change, how many flows there are,
which Service ports get the most new connections since status was last asked for, and
what is wrong with objects. And 'fairlead node', if it runs here: the routes to other
nodes, each with -o wide, and the ranges of addresses of pods, blocks of pools too.
The exit code is 0 if all is well with what is here and 1 if not.`,
		Example: `  fairlead status
  fairlead status --watch
  fairlead status -o json | jq .frontends`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			if f.watch {
				return f.again(cmd.Context(), e)
			}
			return f.status(cmd.Context(), e, e.stdout)
		},
	}
	cmd.Flags().BoolVar(&f.watch, "watch", false, "again every second until interrupted")
	f.registerNodeSocket(cmd)
	f.register(cmd, "wide", "json", "yaml")
	return cmd
}

// again shows the status until ctx ends: each one whole, in place of the one before.
func (f *statusFlags) again(ctx context.Context, e env) error {
	for divide := ""; ; divide = between(isTerminal(e.stdout)) {
		page := bytes.NewBufferString(divide)
		err := f.status(ctx, e, page)
		if ctx.Err() != nil {
			return nil
		}
		if _, err := page.WriteTo(e.stdout); err != nil {
			return err
		}
		if err != nil {
			fmt.Fprintln(e.stderr, "fairlead:", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// statuses are of what runs on this node.
type statuses struct {
	*inspect.Status             // of 'fairlead proxy'
	Pods            *nodeStatus `json:"pods,omitempty"` // of 'fairlead node'

	at time.Time // when they were asked for
}

func (s statuses) healthy() bool {
	return (s.Status == nil || s.Healthy()) && (s.Pods == nil || s.Pods.Healthy())
}

// status asks once and prints the answers to w, which is for stdout.
func (f *statusFlags) status(ctx context.Context, e env, w io.Writer) error {
	s, err := f.askAll(ctx, e.now())
	if err != nil && s.Status == nil && s.Pods == nil {
		return err
	}
	done, printErr := f.printAs(w, s)
	if !done {
		printErr = printStatuses(w, s, f.output == "wide", paletteFor(e))
	}
	switch {
	case err != nil:
		return err
	case printErr == nil && !s.healthy():
		return errUnhealthy
	}
	return printErr
}

// askAll asks both programs. One of which there is no trace is none of this node's,
// unless there is none of the other either.
func (f *statusFlags) askAll(ctx context.Context, now time.Time) (*statuses, error) {
	s := &statuses{at: now}
	var proxy inspect.Status
	proxyErr := f.ask(ctx, "/status", &proxy)
	if proxyErr == nil {
		s.Status = &proxy
	}
	var node nodeStatus
	nodeErr := f.askNode(ctx, &node)
	if nodeErr == nil {
		s.Pods = &node
	}
	if errors.Is(proxyErr, fs.ErrPermission) || errors.Is(nodeErr, fs.ErrNotExist) { // the same is not said twice
		return s, ignoreAbsent(proxyErr, s.Pods != nil)
	}
	return s, errors.Join(ignoreAbsent(proxyErr, s.Pods != nil), nodeErr)
}

// ignoreAbsent is err, or nil if it says no more than that there is nobody, and there
// is another.
func ignoreAbsent(err error, another bool) error {
	if another && errors.Is(err, fs.ErrNotExist) {
		return nil
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

// paletteFor has colours for a terminal, unless somebody wants none (no-color.org).
func paletteFor(e env) palette {
	return palette(isTerminal(e.stdout) && os.Getenv("NO_COLOR") == "")
}

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

// statusTable is what is printed, row by row.
type statusTable struct {
	io.Writer
	now time.Time
	palette
}

func (t statusTable) row(what, format string, args ...any) {
	fmt.Fprintf(t, "%s\t%s\n", what, fmt.Sprintf(format, args...))
}

// bad is a row about something that is not as it should be.
func (t statusTable) bad(what, format string, args ...any) {
	t.row(what, "%s", t.paint(yellow, fmt.Sprintf(format, args...)))
}

func (t statusTable) health(well bool) string {
	if well {
		return t.paint(green, "well")
	}
	return t.paint(red, "ill")
}

// source says where objects come from.
func (t statusTable) source(source string, heard time.Time, stale string) {
	if !heard.IsZero() {
		source += fmt.Sprintf(", heard of %s ago", ago(t.now, heard))
	}
	t.row("objects", "%s", source)
	if stale != "" {
		t.bad("", "not followed: %s", stale)
	}
}

func printStatuses(w io.Writer, s *statuses, wide bool, p palette) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	t := statusTable{table, s.at, p}
	if s.Status != nil {
		t.printProxy(*s.Status)
		t.printBusiest(*s.Status)
		t.printTrouble(*s.Status)
	}
	if s.Pods != nil {
		t.printNode(*s.Pods, wide)
	}
	return table.Flush()
}

func (t statusTable) printProxy(s inspect.Status) {
	t.row("proxy", "%s: version %s on node %s, up for %s", t.health(s.Healthy()), s.Version, s.Node, ago(t.now, s.Started))
	t.row("data path", "%s, by %s: %s", s.Mode, s.Why, s.Backend)
	for _, l := range s.Lacks {
		t.bad("", "the node lacks: %s", l)
	}
	t.source(s.Source, s.Heard, s.Stale)
	if s.Error != "" {
		t.bad("kernel", "the last change was not taken: %s", s.Error)
	} else {
		t.row("kernel", "%s", kernelState(s, t.now))
	}
	if s.LastError != "" && s.Error == "" {
		t.row("", "it did not take a change %s ago: %s", ago(t.now, s.Failed), s.LastError)
	}
	t.row("services", "%d destinations, %d pools, %d backends", s.Frontends, s.Pools, s.Backends)
	if s.Flows.Tracked > 0 {
		t.row("flows", "%d tracked by the kernel", s.Flows.Tracked)
	} else {
		t.row("flows", "%d of packets", s.Flows.Packets)
	}
	for _, path := range []string{"socket", "packet"} {
		if text := outcomesOf(s, path); text != "" {
			t.row(path+"s", "%s", text)
		}
	}
}

// printBusiest prints the Service ports that get the connections and, if it is known
// how many they had before, how fast.
func (t statusTable) printBusiest(s inspect.Status) {
	what := "busiest"
	for _, b := range s.Busiest {
		name := b.Service
		if b.Port != "" {
			name += ":" + b.Port
		}
		rate := ""
		if s.Over > 0 {
			rate = fmt.Sprintf(", %.1f/s in the last %s", float64(b.New)/s.Over.Seconds(), s.Over.Round(time.Second))
		}
		t.row(what, "%d connections to %s%s", b.Connections, name, rate)
		what = ""
	}
}

func (t statusTable) printTrouble(s inspect.Status) {
	for _, o := range s.Outcomes {
		if o.Trouble && o.Count > 0 {
			t.bad("trouble", "%d %ss: %s", o.Count, o.Path, o.Text)
		}
	}
	for _, c := range s.Conflicts {
		t.bad("conflict", "%s", c)
	}
	for _, name := range s.Quarantined {
		t.bad("quarantined", "%s: the kernel does not take it; see the proxy's log", name)
	}
	for _, p := range s.Problems {
		t.bad("left out", "%s", p)
	}
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

// kernelState says whether the kernel has what it should, where it took all it was told.
func kernelState(s inspect.Status, now time.Time) string {
	switch {
	case s.Synced.IsZero():
		return "not programmed yet"
	case s.Pending:
		return "a change is on its way"
	}
	return fmt.Sprintf("up to date, last changed %s ago in %s", ago(now, s.Synced), s.Took.Round(100*time.Microsecond))
}

func ago(now, then time.Time) time.Duration { return now.Sub(then).Round(time.Second) }
