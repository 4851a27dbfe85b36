package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy/inspect"
)

// filter checks the flags of a trace that is live: all may be left out.
func (f *traceFlags) filter() (filter inspect.Filter, err error) {
	f.formats = []string{"table", "json"}
	if err := f.check(); err != nil {
		return filter, err
	}
	filter.Trouble = f.trouble
	if f.from != "" {
		if filter.From, err = netip.ParseAddr(f.from); err != nil {
			return filter, usagef("--from %q: must be an address like 10.244.1.5 or fd00::5", f.from)
		}
	}
	if f.to == "" {
		return filter, nil
	}
	to, protocol, err := f.destination()
	if err != nil {
		return filter, err
	}
	if filter.To, filter.Port = to.Addr(), to.Port(); protocol != 0 {
		filter.Protocol = protocol.String()
	}
	return filter, nil
}

// live prints events until it is interrupted.
func (f *traceFlags) live(cmd *cobra.Command, e env) error {
	filter, err := f.filter()
	if err != nil {
		return err
	}
	return explain(f.client().Live(cmd.Context(), filter, func(event inspect.Event) error {
		if f.output == "json" {
			return json.NewEncoder(e.stdout).Encode(event)
		}
		return printEvent(e.stdout, event)
	}))
}

// printEvent prints a line:
//
//	12:30:01.250  tcp  10.244.1.9:40000 (cni0) → 10.96.0.10:80 default/web → 10.244.1.2:8080: to the endpoint in turn
func printEvent(w io.Writer, e inspect.Event) error {
	from := fmt.Sprintf("%s (%s)", e.From, e.Interface)
	switch e.Path {
	case "socket":
		from = fmt.Sprintf("socket of process %d (%s)", e.Process, e.Command)
	case "tracked":
		from = e.From.String()
	}
	to := e.To.String()
	if strings.HasPrefix(e.Protocol, "icmp") { // which has no ports
		from, to = fmt.Sprintf("%s (%s)", e.From.Addr(), e.Interface), e.To.Addr().String()
	}
	if e.Service != "" {
		to += " " + e.Service
	}
	if e.Backend.IsValid() {
		to += " → " + e.Backend.String()
	}
	if e.Protocol == "" { // it is of no flow
		_, err := fmt.Fprintf(w, "%s  %s\n", e.Time.Format("15:04:05.000"), e.Text)
		return err
	}
	if e.Lost > 0 {
		fmt.Fprintf(w, "… %d more that came too fast\n", e.Lost)
	}
	_, err := fmt.Fprintf(w, "%s  %-4s  %s → %s: %s\n", e.Time.Format("15:04:05.000"), e.Protocol, from, to, e.Text)
	return err
}
