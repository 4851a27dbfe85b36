package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy/inspect"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/way"
)

// traceFlags are the flags of 'fairlead trace' as given.
type traceFlags struct {
	askFlags
	nodeSocketFlag
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
turn and why not the others, and whether they see the sender's address. What the
kernel has otherwise than it should of that Service is said, and makes the exit code 1.

In mode ebpf a sender with a socket on this node is led by that, others by their packets.
Where it is not known which it is, because the proxy cannot see all processes of the
node, or nobody has that address now, both are answered.

The kernel is asked for the way to each of the endpoints, or to a destination that is
no Service's, such as another pod: by which route, device and tunnel, and whether
NAT gives the packet another source, and why. Rules of others count too.

With --live it is not asked what would become of a flow, but shown what becomes of
those that there are, as they begin or, in mode ebpf, end in trouble, until it is
interrupted. --from and --to then pick flows and may be left out; in mode ebpf those of
sockets have no sender yet, and are not shown with --from.`,
		Example: `  fairlead trace --from 10.244.1.5 --to 10.96.0.10:53/udp
  fairlead trace --from 10.244.1.5 --to 10.244.2.7
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
	cmd.Flags().StringVar(&f.to, "to", "", "destination, as ADDR:PORT/PROTOCOL, of IPv6 [ADDR]:PORT/PROTOCOL (protocol tcp, udp or sctp; without it tcp), or ADDR alone, for no Service")
	cmd.Flags().BoolVar(&f.watch, "live", false, "show what becomes of flows as it happens")
	cmd.Flags().BoolVar(&f.trouble, "trouble", false, "with --live: only who gets no answer and is not told why")
	f.registerNodeSocket(cmd)
	f.register(cmd, "json", "yaml")
	return cmd
}

// packet checks the flags. Port 0 is none.
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
	if p.Dst, p.Protocol, err = f.destination(); err != nil {
		return p, err
	}
	if p.Dst.Port() == 0 && p.Protocol != 0 {
		return p, f.noDestination()
	}
	if p.Protocol == 0 {
		p.Protocol = service.TCP
	}
	if p.Src.Unmap().Is6() != p.Dst.Addr().Unmap().Is6() {
		return p, usagef("--from %s --to %s: one is IPv4, the other IPv6", p.Src, p.Dst)
	}
	return p, nil
}

// destination reads --to: an address, with or without a port and a protocol. 0 is none.
func (f *traceFlags) destination() (to netip.AddrPort, protocol service.Protocol, err error) {
	text, name, found := strings.Cut(f.to, "/")
	if found {
		if err := protocol.UnmarshalText([]byte(strings.ToLower(name))); err != nil {
			return to, 0, usagef("--to %q: %w", f.to, err)
		}
	}
	bare := text
	if strings.HasPrefix(text, "[") {
		bare = strings.TrimSuffix(text[1:], "]")
	} else if addr, port, ok := readAsPort(text); ok {
		return to, 0, usagef("--to %q: an address, or one with a port? Write [%s] or [%s]:%s", f.to, text, addr, port)
	}
	if addr, err := netip.ParseAddr(bare); err == nil {
		return netip.AddrPortFrom(addr, 0), protocol, nil
	}
	to, err = netip.ParseAddrPort(text)
	if err != nil || to.Port() == 0 {
		return to, 0, f.noDestination()
	}
	return to, protocol, nil
}

// readAsPort divides an address of IPv6 that reads as one with a port behind it, too.
func readAsPort(text string) (addr, port string, ok bool) {
	i := max(strings.LastIndex(text, ":"), 0)
	addr, port = text[:i], strings.TrimPrefix(text[i:], ":")
	whole, notWhole := netip.ParseAddr(text)
	_, notAddr := netip.ParseAddr(addr)
	_, notPort := strconv.ParseUint(port, 10, 16)
	return addr, port, notWhole == nil && whole.Is6() && notAddr == nil && notPort == nil
}

func (f *traceFlags) noDestination() error {
	return usagef("--to %q: must be an address, a port and a protocol like 10.96.0.10:53/udp or [fd00::1]:80/tcp, or an address alone", f.to)
}

// traced is what 'fairlead trace' prints.
type traced struct {
	inspect.Traced
	// Unasked says why Services are not in it; "": they are.
	Unasked string `json:"unasked,omitempty"`
	// Ways says by destination how a packet goes on.
	Ways       map[netip.Addr]way.Way `json:"ways"`
	WaysIfHere map[netip.Addr]way.Way `json:"waysIfHere,omitempty"` // with IfHere
}

// errDiffers is that the kernel has not what it should; what is printed.
var errDiffers = errors.New("the kernel has not all as it should")

func (f *traceFlags) run(cmd *cobra.Command, e env, p service.Packet) error {
	t, err := f.trace(cmd.Context(), p)
	if err != nil {
		return err
	}
	done, err := f.printAs(e.stdout, t)
	if !done {
		err = t.print(e.stdout, p)
	}
	if err == nil && len(t.Kernel) > 0 {
		err = errDiffers
	}
	return err
}

// trace asks the proxy, and then the kernel where that leads. Where only 'fairlead node'
// runs there are no Services.
func (f *traceFlags) trace(ctx context.Context, p service.Packet) (t traced, err error) {
	in, routed, _ := way.Entry(p.Src) // or nothing of it comes in
	question := url.Values{"from": {p.Src.String()}, "to": {p.Dst.String()}, "protocol": {p.Protocol.String()}, "in": {in}}
	if routed {
		question.Set("routed", "yes")
	}
	err = f.ask(ctx, "/trace?"+question.Encode(), &t.Traced)
	if errors.Is(err, fs.ErrNotExist) && f.askNode(ctx, new(nodeStatus)) == nil {
		err, t.Unasked = nil, "not known: 'fairlead proxy' does not run here"
	}
	if err != nil {
		return t, err
	}
	t.Ways = waysOf(ctx, t.Led, p)
	if t.IfHere != nil {
		t.WaysIfHere = waysOf(ctx, *t.IfHere, p)
	}
	return t, nil
}

// waysOf asks the kernel where a flow goes on that is led so.
func waysOf(ctx context.Context, led inspect.Led, p service.Packet) map[netip.Addr]way.Way {
	ways := map[netip.Addr]way.Way{}
	find := func(to netip.AddrPort) {
		if _, known := ways[to.Addr()]; !known {
			ways[to.Addr()] = way.Find(ctx, way.Packet{Src: p.Src, Dst: to, Protocol: protocolOf(p), Past: led.Path == "packet"})
		}
	}
	for _, endpoint := range led.Endpoints {
		if endpoint.Turns {
			find(endpoint.Addr)
		}
	}
	if led.Verdict == service.Pass {
		find(p.Dst)
	}
	return ways
}

// protocolOf is the protocol's number, 0 where a port does not matter.
func protocolOf(p service.Packet) uint8 {
	if p.Dst.Port() == 0 {
		return 0
	}
	return uint8(p.Protocol)
}

// verdicts in words.
var verdicts = map[service.Verdict]string{
	service.Pass:    "no Service's: the packet goes its way as if there were no proxy",
	service.Forward: "forwarded to these in turn",
	service.Reject:  "rejected: the sender is told",
	service.Drop:    "dropped in silence",
}

// paths in words: how the kernel leads a flow, where that says more than its mode.
var paths = map[string]string{
	"socket": "by the sender's socket, which gets its endpoint when it connects or sends",
	"packet": "by its packets, past netfilter: rules of iptables and nftables do not see them",
}

func (t traced) print(w io.Writer, p service.Packet) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(what, why string) {
		if why != "" {
			fmt.Fprintf(table, "%s\t%s\n", what, why)
		}
	}
	said, endpoints := t.rows(p), endpointRows(t.Led, t.Ways)
	for _, r := range said {
		row(r.what, r.why)
	}
	if t.Verdict == service.Pass {
		onward := t.Ways[p.Dst.Addr()]
		row("way", onward.String())
		row("route", onward.Route)
		if onward.NAT.Why != "" {
			row("NAT", onward.NAT.String())
		}
	}
	for _, r := range endpoints {
		row(r.what, r.why)
	}
	if t.IfHere != nil {
		row("or else", "if the sender has a socket on this node, which is not known: "+t.Unsure)
		for _, r := range differing(said, ledRows(*t.IfHere, p)) {
			row("  "+r.what, r.why)
		}
		for _, r := range differing(endpoints, endpointRows(*t.IfHere, t.WaysIfHere)) {
			row(r.what, r.why)
		}
	}
	t.printKernel(row)
	return table.Flush()
}

// differing are those of the rows b, which are as many as a, that are not as in a.
func differing(a, b []tracedRow) (rows []tracedRow) {
	for i, r := range b {
		if r != a[i] {
			rows = append(rows, tracedRow{r.what, cmp.Or(r.why, "-")})
		}
	}
	return rows
}

// tracedRow is a line of what is printed; one without a why is left out.
type tracedRow struct{ what, why string }

func (t traced) rows(p service.Packet) []tracedRow {
	if t.Unasked != "" {
		return []tracedRow{{"services", t.Unasked}}
	}
	return ledRows(t.Led, p)
}

// ledRows are as many lines for each flow.
func ledRows(led inspect.Led, p service.Packet) []tracedRow {
	affinity := ""
	if led.Affinity > 0 {
		affinity = fmt.Sprintf("the sender goes to the same one again for %s after its last flow", led.Affinity)
	}
	return []tracedRow{
		{"sender", fmt.Sprintf("%s is %s", p.Src, led.Sender)},
		{"destination", fmt.Sprintf("%s is %s", destinationText(p), led.Destination)},
		{"source ranges", led.Sources},
		{"policy", led.Policy},
		{"endpoints", led.Choice},
		{"affinity", affinity},
		{"masquerade", led.Masquerade},
		{"path", paths[led.Path]},
		{"verdict", verdicts[led.Verdict]},
	}
}

// destinationText leaves out a port that does not matter.
func destinationText(p service.Packet) string {
	if p.Dst.Port() == 0 {
		return p.Dst.Addr().String()
	}
	return fmt.Sprintf("%s/%s", p.Dst, p.Protocol)
}

// printKernel says what reading the kernel back has shown.
func (t traced) printKernel(row func(what, why string)) {
	switch {
	case t.Unasked != "":
	case t.Unread != "":
		row("kernel", "not compared: "+t.Unread)
	case len(t.Kernel) == 0:
		row("kernel", "has all this as it should")
	default:
		what := "kernel"
		for _, line := range t.Kernel {
			row(what, line)
			what = " " // else the column ends
		}
	}
}

// endpointRows are as many lines for each flow to a Service.
func endpointRows(led inspect.Led, ways map[netip.Addr]way.Way) (rows []tracedRow) {
	for _, e := range led.Endpoints {
		what, mark := e.Why, "  -"
		if e.Turns {
			mark = "  →"
			onward := ways[e.Addr.Addr()]
			what = onward.String() + seen(e, onward)
		}
		if e.Turns && e.Addr == led.Next {
			what += ", is next"
		}
		if e.Node != "" {
			what += " (node " + e.Node + ")"
		}
		rows = append(rows, tracedRow{fmt.Sprintf("%s %s", mark, e.Addr), what})
	}
	return rows
}

// seen says whom an endpoint sees, if that is not the sender.
func seen(e service.Fate, onward way.Way) string {
	switch {
	case e.Masquerade && e.Why != "":
		return ", sees an address of this node: " + e.Why
	case e.Masquerade:
		return ", sees an address of this node"
	case onward.NAT.Masqueraded && onward.NAT.To.IsValid():
		return fmt.Sprintf(", sees %s of this node: %s", onward.NAT.To, onward.NAT.Why)
	case onward.NAT.Masqueraded:
		return ", sees an address of this node: " + onward.NAT.Why
	case onward.NAT.Past:
		return ", sees the sender's own address and needs a route to it: past netfilter it keeps that, although " + onward.NAT.Why
	}
	return ""
}
