package main

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy/inspect"
	"github.com/fairlead/fairlead/proxy/service"
)

func servicesCommand(e env) *cobra.Command {
	var f askFlags
	var namespace string
	cmd := &cobra.Command{
		Use:   "services [[NAMESPACE/]NAME]",
		Short: "Show what becomes of flows to Services on this node",
		Long: `Asks this node's proxy for all destinations that are Services', or one Service's
(without a namespace: in that of --namespace, or default), and for the endpoints that get their
flows in turn. A star says that the endpoint sees an address of this node instead
of the sender's. With -o wide each kind of sender has a line of its own, else only
where they differ, and the connections that each Service port has got are shown.

The kernel is read back: what it has otherwise than it should is said below, its
Service is marked (!), and the exit code is 1.`,
		Example: `  fairlead services
  fairlead services kube-system/kube-dns -o wide
  fairlead services --namespace kube-system`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: f.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			question, err := servicesQuestion(namespace, args)
			if err != nil {
				return err
			}
			if err := f.check(); err != nil {
				return err
			}
			var rows []inspect.Row
			if err := f.ask(cmd.Context(), question, &rows); err != nil {
				return err
			}
			if len(args) > 0 && len(rows) == 0 {
				return fmt.Errorf("service %s: the proxy of this node has no destination of it", args[0])
			}
			done, err := f.printAs(e.stdout, rows)
			if !done {
				err = printServices(e.stdout, rows, f.output == "wide")
			}
			if err == nil && slices.ContainsFunc(rows, func(r inspect.Row) bool { return len(r.Kernel) > 0 }) {
				err = errDiffers
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "", "show the Services of one namespace only")
	f.register(cmd, "wide", "json", "yaml")
	return cmd
}

func servicesQuestion(namespace string, args []string) (string, error) {
	switch {
	case len(args) == 0:
		return "/services?" + url.Values{"namespace": {namespace}}.Encode(), nil
	case len(args) > 1:
		return "", usagef("argument %q: 'fairlead services' takes one Service", args[1])
	}
	in, name, found := strings.Cut(args[0], "/")
	switch {
	case !found:
		in, name = cmp.Or(namespace, "default"), args[0]
	case namespace != "" && namespace != in:
		return "", usagef("--namespace %s: %s is in another one", namespace, args[0])
	}
	if in == "" || name == "" || strings.Contains(name, "/") {
		return "", usagef("service %q: must be a name, or a namespace and a name like kube-system/kube-dns", args[0])
	}
	return "/services?" + url.Values{"name": {in + "/" + name}}.Encode(), nil
}

// completeServices completes the name of a Service, for shells.
func (f *askFlags) completeServices(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	var rows []inspect.Row
	if len(args) > 0 || f.ask(cmd.Context(), "/services?kernel=no", &rows) != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, row := range rows {
		if strings.HasPrefix(row.Service, begun) && !slices.Contains(names, row.Service) {
			names = append(names, row.Service)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func printServices(w io.Writer, rows []inspect.Row, wide bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	connections := ""
	if wide {
		connections = "CONNECTIONS\t"
	}
	fmt.Fprintf(table, "SERVICE\tPORT\tDESTINATION\t%sFROM\tTO\n", connections)
	differs := map[string]string{} // Service → its mark
	for _, row := range rows {
		if len(row.Kernel) > 0 {
			differs[row.Service] = " !"
		}
	}
	for _, row := range rows {
		if !row.Destination.IsValid() {
			continue // is no more than what the kernel has
		}
		if wide {
			connections = dash(count(row.Connections)) + "\t"
		}
		for _, group := range senders(row, wide) {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s%s\t%s\n", row.Service+differs[row.Service], dash(row.Port), destination(row), connections, group.from, group.to)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	return printDifferences(w, rows, wide)
}

func count(n *uint64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(*n, 10)
}

// shownDifferences is how many are printed of each Service unless all are wanted.
const shownDifferences = 5

// printDifferences prints what the kernel has otherwise than it should.
func printDifferences(w io.Writer, rows []inspect.Row, all bool) error {
	first := true
	for _, row := range rows {
		if len(row.Kernel) == 0 {
			continue
		}
		if first {
			fmt.Fprintln(w, "\nThe kernel has not what it should (the proxy mends that when it notices, or when it starts):")
			first = false
		}
		for i, line := range row.Kernel {
			if i == shownDifferences && !all {
				fmt.Fprintf(w, "  … and %d more (see -o wide)\n", len(row.Kernel)-i)
				break
			}
			if row.Service != "" {
				line = row.Service + ": " + line
			}
			if _, err := fmt.Fprintln(w, "  "+line); err != nil {
				return err
			}
		}
	}
	return nil
}

// destination is the address and port that a row is about.
func destination(r inspect.Row) string {
	d := r.Destination.String()
	if r.Destination.Addr().IsUnspecified() {
		d = fmt.Sprintf("node:%d", r.Destination.Port())
		if r.Destination.Addr().Is6() {
			d = fmt.Sprintf("node(IPv6):%d", r.Destination.Port())
		}
	}
	return d + "/" + r.Protocol.String()
}

// group is senders whose flows fare alike.
type group struct{ from, to string }

// senders puts those together whose flows fare alike, unless each is wanted alone.
func senders(r inspect.Row, apart bool) []group {
	var out []group
	for _, p := range r.Paths {
		to := outcome(p)
		i := len(out) - 1
		if i >= 0 && out[i].to == to && !apart {
			out[i].from += "," + p.Sender.String()
			continue
		}
		out = append(out, group{p.Sender.String(), to})
	}
	if len(out) == 1 {
		out[0].from = "all"
	}
	if len(r.Sources) > 0 {
		for i := range out {
			out[i].from += " in " + strings.Join(texts(r.Sources), ",")
		}
	}
	return out
}

// outcome is what becomes of flows.
func outcome(p inspect.Path) string {
	if p.Verdict != service.Forward {
		return p.Verdict.String()
	}
	var backends []string
	for _, b := range p.Backends {
		text := b.String()
		if p.Masquerade {
			text += "*"
		}
		backends = append(backends, text)
	}
	to := strings.Join(backends, " ")
	if p.Affinity > 0 {
		to += fmt.Sprintf(" (the same for %s)", p.Affinity)
	}
	return to
}

func texts(prefixes []netip.Prefix) []string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return out
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
