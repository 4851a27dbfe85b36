// Package lab builds a cluster of network namespaces on one machine: nodes on
// an underlay, pods on the nodes, and on each node the real programs. It is
// what fairlead-lab and the end-to-end tests stand on.
//
//	underlay                 bridge "switch", 192.168.244.1/24
//	               ┌────────────────────────┴────────────────┐
//	nodes    eth0 192.168.244.11                     eth0 192.168.244.12
//	         fairlead node, proxy                    fairlead node, proxy
//	         cni0 10.244.1.1/24                      cni0 10.244.2.1/24
//	               ├───────────────┐                         │
//	pods     eth0 10.244.1.2  eth0 10.244.1.3        eth0 10.244.2.2
//
// The underlay, each node and each pod are a network namespace, all of them with
// IPv6 too. Pods are attached by running fairlead-cni through libcni, as a
// container runtime does, and in each of them a server of package e2e/echo runs
// as a process of its own.
//
// All that a lab owns lies under Root/ID, its namespaces bound to files there,
// its processes recognisable by the namespace they are in. So a lab can be
// removed by whoever finds it (Remove, Sweep), also when it is half made or its
// owner was killed. Nothing else on the machine is changed: no link, address or
// rule in the namespace that the lab is started from.
//
// The lab knows the programs by their command lines only and imports nothing of
// the product.
package lab

import (
	"context"
	"errors"
	"fmt"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Options say what lab to build.
type Options struct {
	ID     string // names the lab; "" is a random one
	Nodes  int    // 1 to MaxNodes
	Mode   string // the proxies' --mode; "" is auto
	Routed bool   // the last node is on a link of its own, behind a router
	// Macvlan: nodes have a second network, of pods on the underlay itself, with
	// addresses of a pool, and the macvlan shim. Not together with Routed.
	Macvlan bool
	// ProxyFlags are more flags of fairlead proxy, AgentFlags of fairlead node.
	ProxyFlags, AgentFlags []string
	BinDir                 string // where fairlead, fairlead-cni and fairlead-lab are
	// Source starts what programs learn of the cluster from, in place of the
	// directories that Apply writes to. It is called when the lab has its nodes, and
	// nothing runs on them. What it starts in Outside ends with the lab.
	Source func(ctx context.Context, l *Lab) (Sources, error)
	// Keep: the lab outlives the process that builds it, once that has called
	// (*Lab).Keep, until somebody calls Remove.
	Keep bool
}

// Sources are the flags that say where programs learn of the cluster from, and what
// more they are told; nil: the directories.
type Sources struct{ Proxy, Agent []string }

// Lab is a cluster of network namespaces. Its methods must not be called
// concurrently, those of its Pods and Nodes may be.
type Lab struct {
	ID    string
	Nodes []*Node

	opts     Options
	dir      dir
	owner    Process
	underlay *netns.NS
	pods     []*Pod
	bare     []*netns.NS // ends of bare paths
}

// New builds a lab: underlay, nodes, and on each node fairlead node, which
// connects them, and a proxy. It has no pods and no Services yet. What a failed or cancelled New has
// made is gone when it returns.
func New(ctx context.Context, opts Options) (*Lab, error) {
	if err := Preflight(opts); err != nil {
		return nil, err
	}
	if opts.Mode == "" {
		opts.Mode = "auto"
	}
	l, err := create(opts)
	if err != nil {
		return nil, err
	}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) error {
	if err := needBridgeNetfilter(); err != nil {
		return err
	}
	var err error
	if l.underlay, err = newUnderlay(l.dir); err != nil {
		return fmt.Errorf("build underlay: %w", err)
	}
	for i := range l.opts.Nodes {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if err := l.addNode(i + 1); err != nil {
			return fmt.Errorf("build %s: %w", nodeName(i+1), err)
		}
	}
	for _, o := range l.NodeObjects() {
		if err := l.Apply(o); err != nil {
			return err
		}
	}
	if l.opts.Macvlan {
		if err := l.addMacvlan(); err != nil {
			return err
		}
	}
	if err := l.openSources(ctx); err != nil {
		return fmt.Errorf("start the programs' source: %w", err)
	}
	if err := l.startAgents(ctx); err != nil {
		return err
	}
	return l.startProxies()
}

func (l *Lab) openSources(ctx context.Context) (err error) {
	var given Sources
	if l.opts.Source != nil {
		if given, err = l.opts.Source(ctx, l); err != nil {
			return err
		}
	}
	for _, n := range l.Nodes {
		n.sources = given
		for _, flags := range []*[]string{&n.sources.Proxy, &n.sources.Agent} {
			if *flags == nil {
				*flags = []string{"--manifests", n.Manifests()}
			}
		}
	}
	return nil
}

// Outside is the namespace of the underlay, whose address is Gateway: a machine that
// is no node.
func (l *Lab) Outside() *netns.NS { return l.underlay }

// Close ends the lab's processes and removes everything it owns.
func (l *Lab) Close() error {
	l.closeHandles()
	return Remove(l.ID)
}

// Keep leaves a lab that was built with Options.Keep to whoever calls Remove.
// The Lab must not be used afterwards.
func (l *Lab) Keep() error {
	state := l.State()
	state.Kept = true
	if err := l.dir.save(state); err != nil {
		return err
	}
	l.closeHandles()
	return nil
}

func (l *Lab) closeHandles() {
	for _, p := range l.pods {
		_ = p.ns.Close()
	}
	for _, n := range l.Nodes {
		_ = n.ns.Close()
	}
	for _, ns := range l.bare {
		_ = ns.Close()
	}
	if l.underlay != nil {
		_ = l.underlay.Close()
	}
}
