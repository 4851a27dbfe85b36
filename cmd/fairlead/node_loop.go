package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"time"

	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/cni/node/install"
	"github.com/fairlead/fairlead/cni/node/masquerade"
	"github.com/fairlead/fairlead/cni/node/metrics"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// nodeLoop is 'fairlead node' at work: it waits for news of the cluster or of the
// kernel, plans, has the plan programmed, and tries again what failed.
type nodeLoop struct {
	name          string
	options       cninode.Options
	planner       *cninode.Planner
	notMasquerade []netip.Prefix
	kernel        *cninode.Kernel
	table         masquerade.Table // nil: nothing is masqueraded
	alone         bool             // what other kinds of table had is gone
	lost          <-chan struct{}  // tells that somebody may have removed the table
	flushed       <-chan struct{}  // tells that what pods have in the packet filter may be gone
	installer     *nodeInstaller
	pools         *nodePools
	guard         hostLocalGuard
	shim          *nodeShim   // nil: there is to be none
	asked         chan func() // questions to the loop, which alone knows the plan and the kernel
	health        nodeHealth
	inspector     nodeInspector
	metrics       *metrics.Metrics
	events        events
	log           *slog.Logger

	nodes      map[string][]netip.Prefix     // by name, this one too → its part of cluster; nil before the first news
	services   map[string]*watch.ServiceCIDR // by name
	cluster    masquerade.Cluster            // the ranges of all pods and nodes, and what was said to belong to them
	changes    []cninode.Change              // of the plan that the kernel does not have yet, if it can follow so
	whole      bool                          // it cannot: the plan is to be made whole
	since      time.Time                     // when the news came that the kernel does not agree with; zero: it agrees
	damaged    bool                          // the kernel changed by itself, or somebody else changed it, since it agreed
	problems   []cninode.Problem             // that the last sync found
	unswept    []cninode.Problem             // that the last sweep found
	unfiltered []cninode.Problem             // that the last repair of the packet filter found
	reported   map[cninode.Problem]bool      // those that were logged and last
	connected  bool                          // the kernel has what was last planned
	waits      string                        // what a person has to do before pods can be made; "": nothing
}

// open opens the kernel of the network namespace of the calling thread.
func (l *nodeLoop) open(ctx context.Context, how string) error {
	var err error
	if how != "none" {
		if l.table, err = openTable(how); err != nil {
			return err
		}
		if l.lost, err = l.table.Lost(ctx); err != nil {
			return err
		}
	}
	if err := l.listenFilter(ctx); err != nil {
		return err
	}
	l.kernel, err = cninode.Open()
	return err
}

func openTable(how string) (masquerade.Table, error) {
	switch how {
	case "nftables":
		return masquerade.OpenNFTables()
	case "iptables":
		return masquerade.OpenIPTables()
	}
	return masquerade.Open()
}

// After a failure the next try waits nodeRetryMin, and twice as long with each
// further one, up to nodeRetryMax. News of the cluster is not kept waiting by it;
// that of the kernel is, because the failed try may have caused it.
const (
	nodeRetryMin = 100 * time.Millisecond
	nodeRetryMax = 10 * time.Second
)

// run works until ctx ends, which is no error, or there is no more news.
func (l *nodeLoop) run(ctx context.Context, source proxy.Source) error {
	cluster := follow(ctx, source)
	var retry time.Duration
	var again <-chan time.Time        // when to try again what failed; nil: nothing did
	sweep := time.NewTimer(time.Hour) // begins when the kernel agrees for the first time
	defer sweep.Stop()
	for first := true; ; {
		due, err := l.wait(ctx, cluster, again, sweep)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !due:
			continue
		case !l.sync():
			retry = min(max(2*retry, nodeRetryMin), nodeRetryMax)
			again = time.After(retry)
			continue
		}
		retry, again = 0, nil
		if first && l.nodes[l.name] != nil {
			first = false
			sweep.Reset(0)
		}
	}
}

// wait waits for news, takes it in, and says whether there may be something to do.
func (l *nodeLoop) wait(ctx context.Context, cluster <-chan clusterNews, again <-chan time.Time, sweep *time.Timer) (due bool, err error) {
	held := again != nil || l.nodes == nil
	select {
	case <-ctx.Done():
		return false, nil
	case n := <-cluster:
		if n.err == nil {
			l.note(n.news)
		}
		due, held, err = true, false, n.err
	case n, ok := <-l.kernel.News():
		if !ok {
			return false, errors.New("listen to news of the kernel: the socket is closed")
		}
		due = l.noteKernel(n)
		l.damaged = l.damaged || due
	case <-l.lost:
		due = true
		l.metrics.Repaired("masquerade")
	case <-l.flushed:
		l.metrics.Repaired("filter")
		l.repairFilter()
	case <-sweep.C:
		l.sweep(ctx)
		l.repairFilter() // of iptables the kernel tells nothing
		sweep.Reset(sweepEvery)
	case <-l.pools.news:
		due = true
	case answer := <-l.asked:
		answer()
	case <-again:
		due, held = true, false
	}
	if due && l.since.IsZero() {
		l.since = time.Now()
	}
	return due && !held, err
}

// clusterNews is what a source said.
type clusterNews struct {
	news watch.News
	err  error
}

// follow asks the source for news until ctx ends or the source fails.
func follow(ctx context.Context, source proxy.Source) <-chan clusterNews {
	told := make(chan clusterNews)
	go func() {
		for {
			news, err := source.Next(ctx)
			select {
			case told <- clusterNews{news, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return told
}

// note takes in what the source said.
func (l *nodeLoop) note(news watch.News) {
	isOurs := func(p watch.Problem) bool { return slices.Contains([]string{"Node", "ServiceCIDR", ""}, p.Object.Kind) }
	for _, p := range news.Problems {
		if isOurs(p) {
			l.log.Error("left out", "problem", p)
		}
		if self := nodeObject(l.name); p.Object == self { // each node tells of itself
			l.events.Warn(self, "InvalidNode", p.Field+": "+p.Message)
		}
	}
	for _, p := range news.Mended {
		if isOurs(p) {
			l.log.Info("mended", "problem", p)
		}
	}
	underlay, err := l.kernel.Underlay()
	l.whole = l.whole || err != nil || !l.kernel.Agrees()
	if l.nodes == nil {
		l.nodes = map[string][]netip.Prefix{}
		l.cluster.Add(l.notMasquerade...)
	}
	var come []netip.Prefix
	for name, n := range news.Update.Nodes {
		l.cluster.Remove(l.nodes[name]...)
		var change cninode.Change
		var ok bool
		if n == nil {
			change, ok = l.planner.Remove(name, underlay)
			delete(l.nodes, name)
		} else {
			change, ok = l.planner.Set(cninode.Member{Name: n.Name, Addrs: n.Addresses, PodCIDRs: n.PodCIDRs, Created: n.Created}, underlay)
			l.nodes[name] = partOfCluster(n)
			come = append(come, l.nodes[name]...)
		}
		l.changes, l.whole = append(l.changes, change), l.whole || !ok
	}
	l.cluster.Add(come...)
	l.noteServices(news.ServiceCIDRs)
	l.pools.note(news)
}

// noteServices takes in where Services are, besides the ranges that flags say.
func (l *nodeLoop) noteServices(news map[string]*watch.ServiceCIDR) {
	if len(news) == 0 {
		return
	}
	if l.services == nil {
		l.services = map[string]*watch.ServiceCIDR{}
	}
	keep(l.services, news)
	all := slices.Clone(l.options.Services)
	for _, name := range slices.Sorted(maps.Keys(l.services)) {
		all = append(all, l.services[name].CIDRs...)
	}
	l.planner.Services(all)
	l.whole = true
}

// partOfCluster is what of the cluster a node is: its pods and itself.
func partOfCluster(n *service.Node) []netip.Prefix {
	part := slices.Clone(n.PodCIDRs)
	for _, a := range n.Addresses {
		part = append(part, netip.PrefixFrom(a, a.BitLen()))
	}
	if part == nil {
		part = []netip.Prefix{} // it is there
	}
	return part
}

// noteKernel takes in what the kernel said, and with it what else has come: many
// changes at once are one reason to look.
func (l *nodeLoop) noteKernel(n cninode.News) bool {
	changed := l.kernel.Note(n)
	for {
		select {
		case n, ok := <-l.kernel.News():
			if !ok {
				return changed
			}
			changed = l.kernel.Note(n) || changed
		default:
			return changed
		}
	}
}

// sync has the kernel agree with what is known, and says whether it does.
func (l *nodeLoop) sync() bool {
	self, ok := l.planner.Self()
	if !ok {
		// What is programmed stays: this is more likely a mistake than an order.
		l.problems = []cninode.Problem{{Kind: "NodeUnknown", Member: l.name, Text: "the cluster has no node of this name, nothing is changed: see --node-name"}}
		l.report()
		l.health.tell(true, false, "")
		l.inspector.tried(nodeCounts{Nodes: len(l.nodes), Programmed: l.kernel.Routes()})
		return true
	}
	started, wrote := time.Now(), l.kernel.Wrote()
	failed := l.program(self)
	plan := l.planner.Summary()
	ok = len(failed) == 0
	l.problems = slices.Concat(plan.Problems, failed)
	l.report()
	l.metrics.Tried(metrics.Counts{
		Nodes: len(l.nodes), Tunnels: plan.Tunnels, Wanted: plan.Routes, Programmed: l.kernel.Routes(),
	})
	if l.damaged && l.kernel.Wrote() > wrote {
		l.metrics.Repaired("routes")
	}
	if ok {
		l.metrics.Agreed(time.Since(l.since))
		l.since, l.damaged = time.Time{}, false
	}
	if ok && !l.connected {
		l.log.Info("connected", "nodes", len(l.nodes), "routes", plan.Routes, "tunnels", plan.Tunnels, "mtu", plan.MTU, "took", time.Since(started))
	}
	l.connected = ok
	l.health.tell(ok || l.waits != "", plan.Ready, l.waits)
	l.inspector.tried(nodeCounts{
		Connected: ok && plan.Ready, Nodes: len(l.nodes), Wanted: plan.Routes, Programmed: l.kernel.Routes(), Tunnels: plan.Tunnels, MTU: plan.MTU,
	})
	return ok
}

// program does all that pods need, and then tells the runtime that it may make
// some. It returns what could not be done.
func (l *nodeLoop) program(self cninode.Member) (failed []cninode.Problem) {
	l.waits = ""
	try := func(what string, kind cninode.Kind, do func() error) {
		problems := cninode.Failed(l.name, do())
		if len(problems) > 0 {
			l.metrics.Failed(what)
		}
		for _, p := range problems {
			if kind != "" {
				p.Kind = kind
			}
			failed = append(failed, p)
		}
	}
	try("routes", "", l.connect)
	try("masquerade", "NotMasqueraded", func() error { return l.masquerade(self) })
	try("install", "NotInstalled", l.installer.plugin)
	if plan := l.planner.Summary(); len(failed) == 0 && plan.Ready {
		try("install", "NotInstalled", func() error { return l.invite(self, plan.MTU) })
	}
	return failed
}

// invite tells the runtime that it may make pods, unless a person has to see to those
// that there are.
func (l *nodeLoop) invite(self cninode.Member, mtu int) (err error) {
	if l.waits, err = l.guard.check(context.Background(), self.PodCIDRs); err != nil {
		return err
	}
	if l.waits != "" {
		return errors.New(l.waits)
	}
	return l.installer.config(install.Values{NodeName: self.Name, PodCIDRs: self.PodCIDRs, MTU: mtu}, l.pools.config)
}

// connect programs the plan: what has changed of it, if the kernel has all else.
func (l *nodeLoop) connect() error {
	changes, whole := l.changes, l.whole
	l.changes, l.whole = nil, false
	if whole || !l.kernel.Agrees() {
		underlay, err := l.kernel.Underlay()
		if err != nil {
			l.whole = true
			return err
		}
		return l.kernel.Sync(l.planner.Whole(underlay))
	}
	for _, change := range changes {
		if err := l.kernel.Change(change); err != nil {
			return err // and the kernel does not agree
		}
	}
	return nil
}

// masquerade: the cluster is all pods and nodes, and what was said to belong to it.
func (l *nodeLoop) masquerade(self cninode.Member) error {
	if l.table != nil {
		if len(self.PodCIDRs) == 0 {
			// What is programmed stays: pods that run have their addresses still,
			// and a Node that lost its ranges is more likely a mistake.
			return nil
		}
		if err := l.table.Sync(self.PodCIDRs, &l.cluster); err != nil {
			return err
		}
	}
	if l.alone {
		return nil
	}
	err := masquerade.RemoveOthers(l.table)
	l.alone = err == nil
	return err
}

func nodeObject(name string) watch.Object {
	return watch.Object{Kind: "Node", Name: service.Name{Name: name}}
}

// report logs each problem when it begins and when it ends. What is wrong with
// this node itself it tells the cluster, too: each node tells of itself, so that
// what all others see is told once.
func (l *nodeLoop) report() {
	now := map[cninode.Problem]bool{}
	kinds := map[string]int{}
	for _, p := range slices.Concat(l.problems, l.unswept, l.unfiltered) {
		if !now[p] {
			kinds[string(p.Kind)]++
		}
		now[p] = true
		if l.reported[p] {
			continue
		}
		l.log.Error("problem", "kind", p.Kind, "problem", p)
		if p.Member == l.name {
			l.events.Warn(nodeObject(l.name), string(p.Kind), p.Text)
		}
	}
	for p := range l.reported {
		if !now[p] {
			l.log.Info("mended", "kind", p.Kind, "problem", p)
		}
	}
	l.reported = now
	l.metrics.Problems(kinds)
	l.inspector.noted(now)
}

// asksLoop is how long a question waits for the loop to come to it.
const asksLoop = 2 * time.Second

// peers asks the loop how other nodes are reached. It is safe for concurrent use.
func (l *nodeLoop) peers(ctx context.Context) (peers []cninode.Peer, err error) {
	ctx, stop := context.WithTimeoutCause(ctx, asksLoop, fmt.Errorf("how other nodes are reached is not known: the loop has not come to it in %s", asksLoop))
	defer stop()
	answered := make(chan struct{})
	answer := func() {
		defer close(answered)
		underlay, failed := l.kernel.Underlay()
		if _, known := l.planner.Self(); failed != nil || !known {
			err = failed
			return
		}
		peers = l.planner.Peers(underlay, l.kernel.Has)
	}
	select {
	case l.asked <- answer:
		<-answered
		return peers, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
