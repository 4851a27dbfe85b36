package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/sysctl"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/inspect"
	"github.com/fairlead/fairlead/proxy/iptables"
	"github.com/fairlead/fairlead/proxy/service"
)

// differ is a backend that reads back what the kernel has.
type differ interface {
	Differences(ctx context.Context, t *service.Table) (map[service.Name][]string, error)
}

// reporter is a backend whose programs tell what they do.
type reporter interface {
	Outcomes() ([]bpf.Count, error)
	Follow(ctx context.Context, see func(bpf.Report)) error
	Watch(ctx context.Context, see func(bpf.Report)) error
}

// turnCounter is a backend that tells whose turn it is.
type turnCounter interface {
	Turns(key service.Key, class service.Class) (taken uint64, ok bool)
}

// packetPath is a backend that translates packets past netfilter.
type packetPath interface {
	Leaves(endpoint netip.Addr) bool
}

// flowCounter is a backend that has the flows itself.
type flowCounter interface {
	Flows() (int, error)
}

// trackedFlows counts where the kernel's connection tracking has them.
func trackedFlows() (inspect.Flows, error) {
	text, err := sysctl.Read("net/netfilter/nf_conntrack_count")
	if errors.Is(err, os.ErrNotExist) {
		return inspect.Flows{}, nil // nothing is tracked
	}
	if err != nil {
		return inspect.Flows{}, err
	}
	n, err := strconv.Atoi(text)
	return inspect.Flows{Tracked: n}, err
}

// asksKernel is how long an operator's question waits for the loop to come to it.
const asksKernel = 30 * time.Second

// kernel is what the proxy's backend may be asked for.
func kernel(p *proxy.Proxy) inspect.Kernel {
	var k inspect.Kernel
	mode := p.Backend.(*backend).Backend
	if c, ok := mode.(counter); ok {
		k.Connections = c.Connections
	}
	if c, ok := mode.(turnCounter); ok {
		k.Turns = c.Turns
	}
	if c, ok := mode.(packetPath); ok {
		k.Leaves = c.Leaves
	}
	k.Flows = trackedFlows
	if f, ok := mode.(flowCounter); ok {
		k.Flows = func() (flows inspect.Flows, err error) {
			flows.Packets, err = f.Flows()
			return flows, err
		}
	}
	if d, ok := mode.(differ); ok {
		k.Differences = func(ctx context.Context) (differences map[service.Name][]string, err error) {
			ctx, stop := context.WithTimeout(ctx, asksKernel)
			defer stop()
			asked := p.Ask(ctx, func(t *service.Table) { differences, err = d.Differences(ctx, t) })
			if asked != nil {
				return nil, fmt.Errorf("the proxy has not come to it in %s: %w", asksKernel, asked)
			}
			return differences, err
		}
	}
	if _, ok := mode.(*iptables.Backend); ok {
		k.Path = func(service.Frontend, service.Packet, service.Class, bool) (string, error) { return "tracked", nil }
		k.Watch = func(ctx context.Context, see func(inspect.Event)) error { return watchTracked(ctx, p, see) }
	}
	if b, ok := mode.(*bpf.Backend); ok {
		k.Path = b.Path
	}
	if r, ok := mode.(reporter); ok {
		k.Outcomes = func() ([]inspect.Outcome, error) { return outcomes(r) }
		k.Watch = func(ctx context.Context, see func(inspect.Event)) error {
			return r.Watch(ctx, func(report bpf.Report) { see(event(report, p)) })
		}
	}
	return k
}

func outcomes(r reporter) ([]inspect.Outcome, error) {
	counts, err := r.Outcomes()
	var out []inspect.Outcome
	for _, c := range counts {
		out = append(out, inspect.Outcome{Path: c.Path, Name: c.Name, Text: c.Text, Trouble: c.Trouble, Count: c.Count})
	}
	return out, err
}

// event puts names where a report has numbers, as far as they are still there.
func event(r bpf.Report, view inspect.View) inspect.Event {
	e := inspect.Event{
		Time: time.Now().Add(-r.Ago), Path: r.Path, Outcome: r.Name, Text: r.Text, Trouble: r.Trouble,
		From: r.Src, To: r.Dst, Backend: r.Backend, Process: r.Process, Protocol: protocolName(r.Protocol),
	}
	view.View(func(resolver *service.Resolver) {
		if f, ok := resolver.Table().Frontend(r.Dst, service.Protocol(r.Protocol)); ok {
			e.Service = f.Origin.String()
		}
	})
	if r.Link != 0 {
		if link, err := net.InterfaceByIndex(r.Link); err == nil {
			e.Interface = link.Name
		}
	}
	if r.Process != 0 {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", r.Process)) // none: it has ended
		e.Command = strings.TrimSpace(string(name))
	}
	return e
}

// watchTracked tells of flows to Services that connection tracking begins to know, where
// netfilter translates them.
func watchTracked(ctx context.Context, view inspect.View, see func(inspect.Event)) error {
	tooFast := func() {
		see(inspect.Event{Time: time.Now(), Outcome: "lost", Text: "flows began too fast to tell of all", Trouble: true})
	}
	return conntrack.Watch(ctx, func(f conntrack.Flow) {
		e := inspect.Event{
			Time: time.Now(), Path: "tracked", Outcome: "begun", Text: "to the endpoint in turn",
			From: f.Src, To: f.Dst, Protocol: f.Protocol.String(), Backend: f.ToDst,
		}
		view.View(func(r *service.Resolver) {
			if frontend, ok := r.Table().Frontend(f.Dst, f.Protocol); ok {
				e.Service = frontend.Origin.String()
			}
		})
		if f.ToSrc.Addr() != f.Src.Addr() {
			e.Text += ", which sees " + f.ToSrc.String()
		}
		if f.Dst == f.ToDst {
			e.Outcome, e.Text, e.Backend, e.Trouble = "untranslated", "it is not translated", netip.AddrPort{}, true
		}
		if e.Service != "" {
			see(e)
		}
	}, tooFast)
}

func protocolName(number uint8) string {
	switch number {
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return service.Protocol(number).String()
}

// followKernel logs trouble that programs report, until ctx ends.
func followKernel(ctx context.Context, p *proxy.Proxy, log *slog.Logger) {
	r, ok := p.Backend.(*backend).Backend.(reporter)
	if !ok {
		return
	}
	said := map[string]time.Time{}
	err := r.Follow(ctx, func(report bpf.Report) {
		if !report.Trouble || time.Since(said[report.Name]) < sayAgain {
			return
		}
		said[report.Name] = time.Now()
		e := event(report, p)
		log.Warn("somebody gets no answer (said once a minute of each kind; see 'fairlead trace --live')", "why", e.Text,
			"from", e.From, "to", e.To, "protocol", e.Protocol, "service", e.Service, "interface", e.Interface)
	})
	if err != nil {
		log.Error("what programs in the kernel report is not heard any more", "error", err)
	}
}

// sayAgain is how often trouble of one kind is logged.
const sayAgain = time.Minute
