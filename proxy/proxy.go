// Package proxy keeps a node's Services working: it waits for news of the
// cluster, resolves them into a Table and has a backend program the Table.
//
//	Source ──Update──▶ service.Resolver ──Table, Change──▶ Backend ──▶ kernel
//
// It decides nothing of its own: what Services mean is in proxy/service, how the
// kernel is told is in the backends.
package proxy

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// Source knows the cluster.
type Source interface {
	// Next waits until there is news and returns it: the first time, everything
	// there is. A call that ctx cuts off loses nothing: the next one returns it.
	Next(ctx context.Context) (watch.News, error)
}

// Backend programs the kernel.
type Backend interface {
	// Sync makes the kernel agree with t. change says how t differs from the
	// Table of the Sync before. After an error the backend trusts nothing that it
	// knew: the next Sync starts from what the kernel says, as the first one does.
	Sync(ctx context.Context, t *service.Table, change service.Change) error
	// Intact looks whether others have damaged what Sync made. It is asked all the
	// time, so that it must cost next to nothing where nobody has. If it is not
	// intact, the next Sync starts from what the kernel says.
	Intact() (bool, error)
	// Cleanup removes everything that is the backend's from the kernel.
	Cleanup(ctx context.Context) error
}

// Observer is told what the loop does.
type Observer interface {
	// News: there is something that the kernel may not have yet.
	News(news watch.News)
	// Synced: the kernel was told something, or did not take it.
	Synced(r Round)
	// UpToDate: there is nothing that the kernel does not have, but for what cannot
	// be served.
	UpToDate(left LeftOut)
}

// LeftOut is how much cannot be served.
type LeftOut struct {
	Conflicts   int // claims of Services that are lost to others
	Quarantined int // Services that the kernel does not take
}

// Events tell users of the cluster, beside an object of it, what is wrong with it.
type Events interface {
	Warn(o watch.Object, reason, message string)
}

// Round is one Sync of the backend.
type Round struct {
	Table  *service.Table // not to be kept: it changes with the next round
	Change service.Change
	Repair bool // others had damaged what the kernel was told before
	Took   time.Duration
	Err    error
}

// HealthChecks answers load balancers.
type HealthChecks interface {
	// Sync makes checks those that are answered.
	Sync(ctx context.Context, checks map[service.Name]service.HealthCheck) error
}

// After a Sync that failed the next one waits retryMin, and twice as long with
// each further failure, up to retryMax. News is never kept waiting by it.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 10 * time.Second
	// lookEvery is how often the backend looks whether its work is still there.
	lookEvery = 250 * time.Millisecond
	// checkEvery is how often health checks that could not be served are tried again.
	checkEvery = 10 * time.Second
	// Services that the kernel did not take are tried again after refusedMin, and after
	// twice as long each further time, up to refusedMax: what it lacked, be it memory or
	// room in a map, may be there by then. Each time costs a Sync that reads everything.
	refusedMin = 10 * time.Second
	refusedMax = 10 * time.Minute
)

// Proxy is one node's proxy.
type Proxy struct {
	Source   Source
	Resolver *service.Resolver
	Backend  Backend
	Log      *slog.Logger

	Observers    []Observer
	HealthChecks HealthChecks // nil: nobody asks
	Events       Events       // nil: nobody is told

	asking sync.Mutex // guards the next two, see Ask
	asked  []func()
	wake   context.CancelFunc

	reading     sync.RWMutex              // guards what Resolver knows, for View
	damaged     bool                      // others have damaged what the kernel had
	checked     time.Time                 // when health checks were last served
	reported    map[service.Conflict]bool // conflicts that were logged and last
	quarantined map[service.Name]bool     // Services of which the same is true
	refusedWait time.Duration             // see refusedMin
	refusedAt   time.Time                 // when one was last refused, or they were tried again
	again       map[service.Name]bool     // Services that are just being tried again
}

// Run serves until ctx ends, which is no error, or the source fails. What the
// kernel was told stays.
func (p *Proxy) Run(ctx context.Context) error {
	retry := lookEvery // until something is tried again, or looked at
	synced := false    // the kernel agrees with the Table
	looked := time.Now()
	for first := true; ; first = false {
		news, err := p.next(ctx, retry, first)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		p.reportProblems(news)
		change := p.apply(news.Update)
		p.reportConflicts()
		p.tell(func(o Observer) { o.News(news) })
		if time.Since(looked) >= lookEvery {
			synced, looked = synced && p.intact(), time.Now()
		}
		wasSynced := synced
		if !synced || !change.Empty() {
			synced = p.sync(ctx, change)
		}
		synced = synced && p.retryRefused(ctx)
		switch {
		case synced:
			retry = lookEvery
			p.reportServed()
			p.tell(func(o Observer) { o.UpToDate(LeftOut{len(p.reported), len(p.quarantined)}) })
			if !news.Update.Empty() || !wasSynced || time.Since(p.checked) >= checkEvery {
				p.syncHealthChecks(ctx)
			}
		case ctx.Err() != nil:
			return nil
		case wasSynced || first:
			retry = retryMin
		default:
			retry = min(2*retry, retryMax)
		}
	}
}

// apply takes an update in while nobody reads.
func (p *Proxy) apply(u service.Update) service.Change {
	p.reading.Lock()
	defer p.reading.Unlock()
	return p.Resolver.Apply(u)
}

// quarantine takes Services out while nobody reads.
func (p *Proxy) quarantine(names []service.Name) service.Change {
	p.reading.Lock()
	defer p.reading.Unlock()
	return p.Resolver.Quarantine(names...)
}

// release lets Services in again while nobody reads.
func (p *Proxy) release() service.Change {
	p.reading.Lock()
	defer p.reading.Unlock()
	return p.Resolver.Release()
}

// View lets read see what the Resolver knows, from any goroutine. Nothing may be
// changed or kept.
func (p *Proxy) View(read func(*service.Resolver)) {
	p.reading.RLock()
	defer p.reading.RUnlock()
	read(p.Resolver)
}

// intact says whether the kernel still has what it was told.
func (p *Proxy) intact() bool {
	ok, err := p.Backend.Intact()
	if err != nil {
		p.Log.Error("cannot look whether the rules are intact", "error", err)
		return true
	}
	if !ok {
		p.damaged = true
		p.Log.Warn("somebody removed or changed our rules: making them anew")
	}
	return ok
}

// sync makes the kernel agree with the Table and says whether it does. Services
// that the kernel does not take are no reason not to serve the others.
func (p *Proxy) sync(ctx context.Context, change service.Change) bool {
	for {
		err := p.syncOnce(ctx, change)
		var refused *service.RefusedError
		if !errors.As(err, &refused) || ctx.Err() != nil {
			return err == nil && ctx.Err() == nil
		}
		change = p.quarantine(slices.Collect(maps.Keys(refused.Services)))
		if change.Empty() { // refused for what is not in the Table
			return false
		}
		p.reportRefused(refused)
	}
}

// retryRefused tries the Services in quarantine again, if it is time, and says whether
// the kernel agrees with the Table. Of those that are refused again nothing is said.
func (p *Proxy) retryRefused(ctx context.Context) bool {
	if len(p.quarantined) == 0 || time.Since(p.refusedAt) < p.refusedWait {
		return true
	}
	p.again = maps.Clone(p.quarantined)
	defer func() { p.again = nil }()
	p.refusedAt, p.refusedWait = time.Now(), min(2*p.refusedWait, refusedMax)
	return p.sync(ctx, p.release())
}

func (p *Proxy) syncOnce(ctx context.Context, change service.Change) error {
	t := p.Resolver.Table()
	started := time.Now()
	err := p.Backend.Sync(ctx, t, change)
	took := time.Since(started)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.tell(func(o Observer) {
		o.Synced(Round{Table: t, Change: change, Repair: p.damaged, Took: took, Err: err})
	})
	if refused := (*service.RefusedError)(nil); errors.As(err, &refused) {
		return err
	}
	if err != nil {
		p.Log.Error("sync failed, will be tried again", "error", err)
		return err
	}
	p.damaged = false
	p.Log.Info("synced", "frontends", len(t.Frontends), "pools", len(t.Pools),
		"frontends_changed", len(change.Frontends), "pools_changed", len(change.Pools), "took", took)
	return nil
}

// syncHealthChecks is called again and again: a port that another program holds
// may become free.
func (p *Proxy) syncHealthChecks(ctx context.Context) {
	if p.HealthChecks == nil {
		return
	}
	p.checked = time.Now()
	if err := p.HealthChecks.Sync(ctx, p.Resolver.Table().HealthChecks); err != nil {
		p.Log.Error("load balancers get no answer about some Services", "error", err)
	}
}

func (p *Proxy) tell(what func(Observer)) {
	for _, o := range p.Observers {
		what(o)
	}
}

// next waits for news, and for the first as long as it takes, but otherwise no
// longer than wait.
func (p *Proxy) next(ctx context.Context, wait time.Duration, first bool) (watch.News, error) {
	if first {
		return p.Source.Next(ctx)
	}
	timed, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	p.wakeBy(cancel)
	defer p.answer()
	defer p.wakeBy(nil)
	news, err := p.Source.Next(timed)
	if err != nil && timed.Err() != nil {
		return watch.News{}, nil
	}
	return news, err
}
