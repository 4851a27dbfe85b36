package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// nodeLoop is 'fairlead node' at work: it waits for news of the cluster or of the
// kernel, plans, has the plan programmed, and tries again what failed.
type nodeLoop struct {
	name    string
	kernel  *cninode.Kernel
	options cninode.Options
	log     *slog.Logger

	members   map[string]cninode.Member // by name, this node too
	reported  map[string]bool           // problems that were logged and last
	connected bool                      // the kernel has what was last planned
}

func newNodeLoop(name string, log *slog.Logger) *nodeLoop {
	return &nodeLoop{name: name, log: log, members: map[string]cninode.Member{}, reported: map[string]bool{}}
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
	var again <-chan time.Time // when to try again what failed
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-cluster:
			if n.err != nil {
				return n.err
			}
			l.note(n.news)
		case n, ok := <-l.kernel.News():
			if !ok {
				return fmt.Errorf("listen to news of the kernel: the socket is closed")
			}
			if changed := l.noteKernel(n); !changed || again != nil {
				continue
			}
		case <-again:
		}
		if l.sync() {
			retry, again = 0, nil
			continue
		}
		retry = min(max(2*retry, nodeRetryMin), nodeRetryMax)
		again = time.After(retry)
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
		}
	}
	for _, p := range news.Mended {
		if p.Object.Kind == "Node" || p.Object.Kind == "" {
			l.log.Info("mended", "problem", p)
		}
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
	return err == nil
}

func (l *nodeLoop) program(self cninode.Member) (cninode.Plan, error) {
	underlay, err := l.kernel.Underlay()
	if err != nil {
		return cninode.Plan{}, err
	}
	others := make([]cninode.Member, 0, len(l.members))
	for name, m := range l.members {
		if name != self.Name {
			others = append(others, m)
		}
	}
	plan := cninode.Make(self, others, underlay, l.options)
	return plan, l.kernel.Sync(plan)
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
