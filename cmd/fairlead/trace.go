package main

import (
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/proxy/service"
)

// traceFlags are the flags of 'fairlead trace' as given.
type traceFlags struct {
	askFlags
	from, to string
	watch    bool // --live
	trouble  bool
}

func traceCommand(e env) *cobra.Command {
	var f traceFlags
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Say what becomes of a new flow on this node, and why",
		Long: `Asks this node's proxy what it does with the first packet of a flow: whose
destination it is, what kind of sender it comes from, which endpoints get it in
turn and why not the others, and whether they see the sender's address. To each of
them, or to a destination that is no Service's, the kernel is asked for the route.

With --live it is not asked what would become of a flow, but shown what becomes of
those that there are, as they begin or end in trouble, until it is interrupted. This
is for mode ebpf. --from and --to then pick flows and may be left out; those of sockets
have no sender yet, and are not shown with --from.`,
		Example: `  fairlead trace --from 10.244.1.5 --to 10.96.0.10:53/udp
  fairlead trace --from 203.0.113.9 --to [fd00::1]:30080 -o json
  fairlead trace --live --to 10.96.0.10
  fairlead trace --live --trouble`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.watch {
				return f.live(cmd, e)
			}
			p, err := f.packet()
			if err != nil {
				return err
			}
			return f.run(cmd, e, p)
		},
	}
	cmd.Flags().StringVar(&f.from, "from", "", "address of the sender")
	cmd.Flags().StringVar(&f.to, "to", "", "destination, as ADDR:PORT/PROTOCOL (protocol tcp, udp or sctp; without it tcp)")
	cmd.Flags().BoolVar(&f.watch, "live", false, "show what becomes of flows as it happens")
	cmd.Flags().BoolVar(&f.trouble, "trouble", false, "with --live: only who gets no answer and is not told why")
	f.register(cmd, "json", "yaml")
	return cmd
}

// packet checks the flags.
func (f *traceFlags) packet() (p service.Packet, err error) {
	if err := f.check(); err != nil {
		return p, err
	}
	if f.trouble {
		return p, usagef("--trouble: only with --live")
	}
	if p.Src, err = netip.ParseAddr(f.from); err != nil {
		return p, usagef("--from %q: must be an address like 10.244.1.5 or fd00::5", f.from)
	}
	to, protocol, found := strings.Cut(f.to, "/")
	if !found {
		protocol = "tcp"
	}
	if p.Dst, err = netip.ParseAddrPort(to); err != nil {
		return p, usagef("--to %q: must be an address, a port and a protocol like 10.96.0.10:53/udp or [fd00::1]:80/tcp", f.to)
	}
	if err := p.Protocol.UnmarshalText([]byte(strings.ToLower(protocol))); err != nil {
		return p, usagef("--to %q: %w", f.to, err)
	}
	if p.Src.Unmap().Is6() != p.Dst.Addr().Unmap().Is6() {
		return p, usagef("--from %s --to %s: one is IPv4, the other IPv6", p.Src, p.Dst)
	}
	return p, nil
}

// traced is what 'fairlead trace' prints.
type traced struct {
	service.Explanation
	// Routes says by destination how a packet leaves this node.
	Routes map[netip.Addr]string `json:"routes"`
}

func (f *traceFlags) run(cmd *cobra.Command, e env, p service.Packet) error {
	question := url.Values{"from": {p.Src.String()}, "to": {p.Dst.String()}, "protocol": {p.Protocol.String()}, "in": {cameInBy(p.Src)}}
	var t traced
	if err := f.ask(cmd.Context(), "/trace?"+question.Encode(), &t.Explanation); err != nil {
		return err
	}
	t.Routes = map[netip.Addr]string{}
	for _, endpoint := range t.Endpoints {
		if endpoint.Turns {
			t.Routes[endpoint.Addr.Addr()] = routeTo(endpoint.Addr.Addr())
		}
	}
	if t.Verdict == service.Pass {
		t.Routes[p.Dst.Addr()] = routeTo(p.Dst.Addr())
	}
	if done, err := f.printAs(e.stdout, t); done {
		return err
	}
	return t.print(e.stdout, p)
}

// cameInBy is the interface by which packets of a sender come in: the one that
// leads back to it; "" if it is this node.
func cameInBy(src netip.Addr) string {
	routes, err := netlink.RouteGet(src.AsSlice())
	if err != nil || len(routes) == 0 || routes[0].Type == unix.RTN_LOCAL {
		return ""
	}
	link, err := netlink.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return ""
	}
	return link.Attrs().Name
}

// routeTo says how the kernel would send a packet.
func routeTo(to netip.Addr) string {
	routes, err := netlink.RouteGet(to.AsSlice())
	if err != nil || len(routes) == 0 {
		return fmt.Sprintf("no route (%v)", err)
	}
	route := routes[0]
	link, err := netlink.LinkByIndex(route.LinkIndex)
	if err != nil {
		return fmt.Sprintf("by link %d, which is gone", route.LinkIndex)
	}
	if route.Gw == nil {
		return "by " + link.Attrs().Name
	}
	return fmt.Sprintf("by %s, via %s", link.Attrs().Name, route.Gw)
}

// verdicts in words.
var verdicts = map[service.Verdict]string{
	service.Pass:    "no Service's: the packet goes its way as if there were no proxy",
	service.Forward: "forwarded to these in turn",
	service.Reject:  "rejected: the sender is told",
	service.Drop:    "dropped in silence",
}

func (t traced) print(w io.Writer, p service.Packet) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, why string) {
		if why != "" {
			fmt.Fprintf(table, "%s\t%s\n", what, why)
		}
	}
	row("sender", fmt.Sprintf("%s is %s", p.Src, t.Sender))
	row("destination", fmt.Sprintf("%s/%s is %s", p.Dst, p.Protocol, t.Destination))
	row("source ranges", t.Sources)
	row("policy", t.Policy)
	row("endpoints", t.Choice)
	if t.Affinity > 0 {
		row("affinity", fmt.Sprintf("the sender goes to the same one again for %s after its last flow", t.Affinity))
	}
	row("masquerade", t.Masquerade)
	verdict := verdicts[t.Verdict]
	if t.Verdict == service.Pass {
		verdict += ", " + t.Routes[p.Dst.Addr()]
	}
	row("verdict", verdict)
	t.printEndpoints(table)
	return table.Flush()
}

func (t traced) printEndpoints(w io.Writer) {
	for _, e := range t.Endpoints {
		what := e.Why
		if e.Turns {
			what = t.Routes[e.Addr.Addr()]
		}
		if e.Turns && e.Masquerade {
			what += ", sees an address of this node"
		}
		if e.Node != "" {
			what += " (node " + e.Node + ")"
		}
		mark := "  -"
		if e.Turns {
			mark = "  →"
		}
		fmt.Fprintf(w, "%s %s\t%s\n", mark, e.Addr, what)
	}
}
