package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/fairlead/fairlead/cni/node/metrics"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/pool"
	"github.com/fairlead/fairlead/ipam/pool/kube"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// nodePools leases blocks of the cluster's pools for this node, beside nodeLoop: a
// request to the API may take its time.
//
//	nodeLoop ──nodes, manifests──▶ note ─┐
//	API server ──IPPool, IPBlock─────────┼─▶ run: pool.Lessor.Sync ──▶ stores
//	stores ──a pod came or went──────────┘                        └──▶ news, to nodeLoop
//
// As long as no network of the node wants a pool, nothing is asked of the API.
type nodePools struct {
	name   string
	stores *nodeStores
	lessor *pool.Lessor
	open   func() (*kube.Source, error) // nil: blocks are assigned by manifests
	shim   *nodeShim                    // nil: there is none
	events events
	log    *slog.Logger

	poked chan struct{} // there may be something to do
	news  chan struct{} // blocks came or went

	source *kube.Source // nil until a pool is wanted
	ready  string       // the network configuration whose pools all have a block; only config uses it

	mu     sync.Mutex               // guards what follows
	nodes  map[string]*service.Node // by name; nil before the first news
	pools  map[string]*watch.IPPool
	blocks map[string]*watch.IPBlock
	report pool.Report
	told   map[string]bool // problems that were logged last
}

// The Lessor's ways.
const (
	poolIdle   = time.Minute
	poolForget = 24 * time.Hour
	poolLook   = 30 * time.Second      // between two looks with no news
	poolGather = 50 * time.Millisecond // pods that come together are one reason to look
)

func newNodePools(name string, stores *nodeStores, grace time.Duration, open func() (*kube.Source, error)) *nodePools {
	p := &nodePools{
		name: name, open: open,
		stores: stores,
		poked:  make(chan struct{}, 1), news: make(chan struct{}, 1),
		pools: map[string]*watch.IPPool{}, blocks: map[string]*watch.IPBlock{},
	}
	options := pool.Options{Grace: grace, Idle: poolIdle, Forget: poolForget, Claim: rand.Text, Routes: p.poolRoutes}
	var api pool.API
	if open != nil {
		api = lateAPI{p}
	}
	p.lessor = pool.NewLessor(name, api, p.stores, options)
	return p
}

// lateAPI is the API server that is watched from when a pool is wanted.
type lateAPI struct{ *nodePools }

func (a lateAPI) Create(ctx context.Context, b pool.Block) (pool.Block, error) {
	return a.source.Create(ctx, b)
}
func (a lateAPI) Update(ctx context.Context, b pool.Block) (pool.Block, error) {
	return a.source.Update(ctx, b)
}
func (a lateAPI) Delete(ctx context.Context, b pool.Block) error { return a.source.Delete(ctx, b) }
func (a lateAPI) Get(ctx context.Context, name string) (pool.Block, bool, error) {
	return a.source.Get(ctx, name)
}
func (a lateAPI) NodeExists(ctx context.Context, name string) (bool, error) {
	return a.source.NodeExists(ctx, name)
}

func (p *nodePools) routed() <-chan struct{} {
	if p.shim == nil {
		return nil
	}
	return p.shim.routed
}

func (p *nodePools) poolRoutes(of pool.Pool) ([]ipam.PoolRoute, bool) {
	if p.shim == nil {
		return nil, true
	}
	return p.shim.podRoutes(of)
}

// note takes in what the source said to nodeLoop.
func (p *nodePools) note(news watch.News) {
	p.mu.Lock()
	if p.nodes == nil {
		p.nodes = map[string]*service.Node{}
	}
	keep(p.nodes, news.Update.Nodes)
	keep(p.pools, news.IPPools)
	keep(p.blocks, news.IPBlocks)
	if self := p.nodes[p.name]; p.shim != nil && self != nil {
		p.shim.note(self, p.nodes)
	}
	p.mu.Unlock()
	p.poke()
}

// keep takes in what there is, and drops what is gone.
func keep[T any](all, news map[string]*T) {
	for name, o := range news {
		if o == nil {
			delete(all, name)
			continue
		}
		all[name] = o
	}
}

func (p *nodePools) poke() {
	select {
	case p.poked <- struct{}{}:
	default:
	}
}

// run works until ctx ends. After a failure the next try waits as nodeLoop's.
func (p *nodePools) run(ctx context.Context) error {
	lock, err := p.stores.lock(ctx)
	if err != nil {
		return err
	}
	defer lock()
	defer func() {
		if p.source != nil {
			p.source.Close()
		}
	}()
	files, err := p.stores.watch()
	if err != nil {
		return err
	}
	defer func() { _ = files.Close() }()
	var retry time.Duration
	for {
		next, err := p.sync(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			retry = min(max(2*retry, nodeRetryMin), nodeRetryMax)
			next = retry
		default:
			retry = 0
		}
		if !p.wait(ctx, files, next) {
			return nil
		}
	}
}

// wait waits until there may be something to do, or ctx ends.
func (p *nodePools) wait(ctx context.Context, files *fsnotify.Watcher, next time.Duration) bool {
	var changed <-chan struct{}
	if p.source != nil {
		changed = p.source.Changed()
	}
	timer := time.NewTimer(next)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-p.poked:
	case <-changed:
		return true
	case <-p.routed():
		return true
	case <-files.Events:
	case <-timer.C:
		return true
	}
	select { // what comes with it
	case <-ctx.Done():
	case <-time.After(poolGather):
	}
	for {
		select {
		case <-files.Events:
		case <-p.poked:
		default:
			return ctx.Err() == nil
		}
	}
}

// sync looks once, and says when to look again.
func (p *nodePools) sync(ctx context.Context) (time.Duration, error) {
	if err := p.follow(ctx); err != nil {
		p.tell(pool.Report{}, err)
		return 0, err
	}
	view, problems := p.view()
	now := time.Now()
	report, err := p.lessor.Sync(ctx, view, now)
	if ctx.Err() != nil {
		return 0, nil
	}
	if len(report.Networks) > 0 { // else nobody here uses pools
		report.Problems = append(problems, report.Problems...)
	}
	p.tell(report, err)
	next := poolLook
	if !report.Again.IsZero() {
		next = min(next, max(report.Again.Sub(now), poolGather))
	}
	return next, err
}

// follow begins to watch the API server when a pool is wanted.
func (p *nodePools) follow(ctx context.Context) error {
	if p.open == nil || p.source != nil {
		return nil
	}
	wanted, err := p.stores.anyPool(ctx)
	if err != nil || !wanted {
		return err
	}
	p.source, err = p.open()
	return err
}

// view is what is known of the cluster, and what is wrong with it.
func (p *nodePools) view() (pool.View, []pool.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := pool.View{Nodes: map[string]bool{}, Synced: p.nodes != nil}
	for name := range p.nodes {
		v.Nodes[name] = true
	}
	var objects kube.Objects
	switch {
	case p.open == nil:
		objects = p.written()
	case p.source != nil:
		objects = p.source.Objects()
		v.Synced = v.Synced && objects.Synced
	}
	if objects.Err != nil {
		v.Why = objects.Err.Error()
	}
	var unsettled []pool.Problem
	v.Blocks = objects.Blocks
	v.Pools, unsettled = pool.Settle(objects.Pools, p.taken())
	return v, append(objects.Problems, unsettled...)
}

// written are the objects of the manifests.
func (p *nodePools) written() kube.Objects {
	o := kube.Objects{Synced: true, Blocks: map[string]pool.Block{}}
	for _, name := range slices.Sorted(maps.Keys(p.pools)) {
		parsed, err := pool.Spec(p.pools[name].Spec).Parse(name)
		if err != nil {
			o.Problems = append(o.Problems, pool.Problem{Kind: pool.KindPool, Name: name, Text: err.Error()})
			continue
		}
		o.Pools = append(o.Pools, parsed)
	}
	for _, name := range slices.Sorted(maps.Keys(p.blocks)) {
		parsed, err := pool.BlockSpec(p.blocks[name].Spec).Parse(name)
		if err != nil {
			o.Problems = append(o.Problems, pool.Problem{Kind: pool.KindBlock, Name: name, Text: err.Error()})
			continue
		}
		o.Blocks[name] = parsed
	}
	return o
}

// taken are the pod CIDRs, in the order of nodes.
func (p *nodePools) taken() []pool.Taken {
	var taken []pool.Taken
	for _, name := range slices.Sorted(maps.Keys(p.nodes)) {
		for _, cidr := range p.nodes[name].PodCIDRs {
			taken = append(taken, pool.Taken{Prefix: cidr, What: "the pod CIDR of node " + name})
		}
	}
	return taken
}

// tell logs what is wrong when it begins and when it ends, and tells nodeLoop if
// blocks came or went.
func (p *nodePools) tell(report pool.Report, err error) {
	p.mu.Lock()
	before := p.report
	p.report = report
	p.mu.Unlock()
	now := map[string]bool{}
	for _, problem := range report.Problems {
		now[problem.String()] = true
		if !p.told[problem.String()] {
			p.log.Error("problem", "problem", problem)
			p.warn(problem)
		}
	}
	if err != nil {
		now[err.Error()] = true
		if !p.told[err.Error()] {
			p.log.Error("problem", "problem", err)
		}
	}
	for problem := range p.told {
		if !now[problem] {
			p.log.Info("mended", "problem", problem)
		}
	}
	p.told = now
	if p.shim != nil && report.Complete {
		p.shim.noteBlocks(blocksOf(report))
	}
	if slices.Equal(blocksOf(before), blocksOf(report)) {
		return
	}
	for _, n := range report.Networks {
		p.log.Info("blocks", "network", n.Network, "pool", n.Pool, "blocks", n.Blocks, "used", n.Used, "free", n.Free)
	}
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// warn tells users of the cluster beside the object.
func (p *nodePools) warn(problem pool.Problem) {
	uid := ""
	if p.source != nil {
		uid = p.source.UID(problem.Kind, problem.Name)
	}
	p.events.WarnUID(watch.Object{Kind: problem.Kind, Name: service.Name{Name: problem.Name}}, uid, "Unusable", problem.Text)
}

// leased is what there is of pools, for metrics.
func (p *nodePools) leased() []metrics.Leased {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []metrics.Leased
	for _, n := range p.report.Networks {
		all = append(all, metrics.Leased{Network: n.Network, Pool: n.Pool, Blocks: len(n.Blocks), Held: n.Used, Cooling: n.Cooling, Free: n.Free})
	}
	return all
}

func blocksOf(r pool.Report) []netip.Prefix {
	var all []netip.Prefix
	for _, n := range r.Networks {
		all = append(all, n.Blocks...)
	}
	return all
}

// config notes which pools a network configuration wants, and is an error until
// the node has a block of each. From then on pods can be made.
func (p *nodePools) config(text []byte) error {
	if string(text) == p.ready {
		return nil
	}
	network, pools, err := poolsOf(text)
	if err != nil {
		return err
	}
	if _, known := p.poolRoutes(pool.Pool{}); !known && len(pools) > 0 {
		return fmt.Errorf("network %s: the macvlan shim is not there yet", network)
	}
	var missing error
	if len(pools) > 0 {
		err = p.stores.Update(context.Background(), network, func(tx ipam.Tx, boot string) error {
			for _, name := range pools {
				if err := ipam.Want(tx, name, time.Now()); err != nil {
					return err
				}
			}
			_, missing = ipam.PoolSets(tx, boot, pools)
			return nil
		})
		p.poke()
	}
	if err == nil && missing == nil {
		p.ready = string(text)
	}
	if none := (*ipam.NoBlockError)(nil); errors.As(missing, &none) {
		return fmt.Errorf("network %s: %w", network, missing)
	}
	return errors.Join(err, missing)
}
