package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/cni/node/install"
	"github.com/fairlead/fairlead/cni/node/masquerade"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// nodeLoop is 'fairlead node' at work: it waits for news of the cluster or of the
// kernel, plans, has the plan programmed, and tries again what failed.
type nodeLoop struct {
	name          string
	options       cninode.Options
	notMasquerade []netip.Prefix
	kernel        *cninode.Kernel
	table         masquerade.Table // nil: nothing is masqueraded
	lost          <-chan struct{}  // tells that somebody may have removed the table
	installer     *nodeInstaller
	health        nodeHealth
	events        events
	log           *slog.Logger

	members   map[string]cninode.Member // by name, this node too; nil before the first news
	reported  map[string]bool           // problems that were logged and last
	connected bool                      // the kernel has what was last planned
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
	var again <-chan time.Time // when to try again what failed; nil: nothing did
	for {
		due, err := l.wait(ctx, cluster, again)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case !due:
			continue
		case l.sync():
			retry, again = 0, nil
		default:
			retry = min(max(2*retry, nodeRetryMin), nodeRetryMax)
			again = time.After(retry)
		}
	}
}

// wait waits for news, takes it in, and says whether there may be something to do.
func (l *nodeLoop) wait(ctx context.Context, cluster <-chan clusterNews, again <-chan time.Time) (due bool, err error) {
	held := again != nil || l.members == nil
	select {
	case <-ctx.Done():
		return false, nil
	case n := <-cluster:
		if n.err == nil {
			l.note(n.news)
		}
		return true, n.err
	case n, ok := <-l.kernel.News():
		if !ok {
			return false, errors.New("listen to news of the kernel: the socket is closed")
		}
		return l.noteKernel(n) && !held, nil
	case <-l.lost:
		return !held, nil
	case <-again:
		return true, nil
	}
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
	for _, p := range news.Problems {
		if p.Object.Kind == "Node" || p.Object.Kind == "" {
			l.log.Error("left out", "problem", p)
			l.events.Warn(p.Object, "InvalidNode", p.Message)
		}
	}
	for _, p := range news.Mended {
		if p.Object.Kind == "Node" || p.Object.Kind == "" {
			l.log.Info("mended", "problem", p)
		}
	}
	if l.members == nil {
		l.members = map[string]cninode.Member{}
	}
	for name, n := range news.Update.Nodes {
		if n == nil {
			delete(l.members, name)
			continue
		}
		l.members[name] = member(n)
	}
}

func member(n *service.Node) cninode.Member {
	return cninode.Member{Name: n.Name, Addrs: n.Addresses, PodCIDRs: n.PodCIDRs}
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
	self, ok := l.members[l.name]
	if !ok {
		// What is programmed stays: this is more likely a mistake than an order.
		l.report([]string{fmt.Sprintf("node %s: the cluster has no node of this name, nothing is changed: see --node-name", l.name)})
		l.health.tell(true, false)
		return true
	}
	started := time.Now()
	plan, err := l.program(self)
	var problems []string
	for _, p := range plan.Problems {
		problems = append(problems, p.String())
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	l.report(problems)
	if err == nil && !l.connected {
		l.log.Info("connected", "nodes", len(l.members), "routes", len(plan.Routes), "tunnels", len(plan.Tunnels), "mtu", plan.MTU, "took", time.Since(started))
	}
	l.connected = err == nil
	l.health.tell(err == nil, plan.Ready)
	return err == nil
}

// program does all that pods need, and then tells the runtime that it may make some.
func (l *nodeLoop) program(self cninode.Member) (cninode.Plan, error) {
	underlay, err := l.kernel.Underlay()
	if err != nil {
		return cninode.Plan{}, err
	}
	plan := cninode.Make(self, l.others(), underlay, l.options)
	err = errors.Join(l.kernel.Sync(plan), l.masquerade(self), l.installer.plugin())
	if err != nil || !plan.Ready {
		return plan, err
	}
	return plan, l.installer.config(install.Values{NodeName: self.Name, PodCIDRs: self.PodCIDRs, MTU: plan.MTU})
}

func (l *nodeLoop) others() []cninode.Member {
	others := make([]cninode.Member, 0, len(l.members))
	for name, m := range l.members {
		if name != l.name {
			others = append(others, m)
		}
	}
	return others
}

// masquerade: the cluster is all pods and nodes, and what was said to belong to it.
func (l *nodeLoop) masquerade(self cninode.Member) error {
	if l.table == nil || len(self.PodCIDRs) == 0 {
		// Without ranges what is programmed stays: pods that run have their
		// addresses still, and a Node that lost them is more likely a mistake.
		return nil
	}
	cluster := slices.Clone(l.notMasquerade)
	for _, m := range l.members {
		cluster = append(cluster, m.PodCIDRs...)
		for _, a := range m.Addrs {
			cluster = append(cluster, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return l.table.Sync(masquerade.NewRanges(self.PodCIDRs, cluster))
}

// report logs each problem when it begins and when it ends.
func (l *nodeLoop) report(problems []string) {
	now := map[string]bool{}
	for _, p := range problems {
		now[p] = true
		if !l.reported[p] {
			l.log.Error("problem", "problem", p)
		}
	}
	for p := range l.reported {
		if !now[p] {
			l.log.Info("mended", "problem", p)
		}
	}
	l.reported = now
}
