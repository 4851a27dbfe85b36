// Package datapath compares the ways that a connection to a Service can take
// through a node: fairlead proxy with iptables and with eBPF, kube-proxy, and no
// proxy at all, for fairlead-lab bench.
//
//	Options ──▶ worlds, one a candidate, all there at once
//	                 │  for each number of Services: start the proxies, check, measure
//	                 ▼
//	        bench.Blocks: slices of every candidate in random order
//	                 ▼
//	        Results ──▶ table, results.json, report.html (package report), Compare
//
// A candidate is checked on each way before it is measured there: connections
// must reach all backends as they should, with the right source address and no
// error. One that is wrong has no figures.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/e2e/bench"
)

// Options are what to compare and how.
type Options struct {
	Candidates []string // see Candidates; Direct is one of them
	Services   []int    // numbers of Services, ascending
	Suite      string   // a key of Suites
	Blocks     int      // of everything; 0: the suite's
	BinDir     string   // where fairlead and fairlead-lab are
	KubeProxy  string   // the program; "": there is none
	Seed       uint64
	MaxSteal   float64 // see bench.Blocks
	// Progress is called when something begins and when it is done.
	Progress func(Progress)
}

// Progress is how far a run is.
type Progress struct {
	Services int    // 0: what is done has to do with no number of Services
	What     string // what is measured, or done
	// Done and Total are times that were expected for what is done and for all.
	Done, Total time.Duration
	Note        string // something to be told, "" for nothing
}

// suite is how thoroughly something is measured.
type suite struct {
	blocks   int           // of traffic
	during   time.Duration // a slice of traffic
	changes  int           // of an endpoint
	bursts   int           // of ten changes
	cold     int           // starts on a fresh node
	restarts int
	patience time.Duration // with a proxy that starts, or that is told of a change
	ipv6     bool
}

// Suites are the values of Options.Suite.
var Suites = []string{"quick", "full"}

func newSuite(o Options) suite {
	s := suite{blocks: 20, during: 30 * time.Millisecond, changes: 10, bursts: 2, cold: 1, restarts: 2, patience: time.Minute}
	if o.Suite == "full" {
		s = suite{blocks: 40, during: 100 * time.Millisecond, changes: 30, bursts: 10, cold: 3, restarts: 5, patience: 10 * time.Minute, ipv6: true}
	}
	if n := o.Blocks; n > 0 {
		s.blocks, s.changes, s.bursts, s.cold, s.restarts = n, n, n, n, n
	}
	return s
}

// run is a comparison under way.
type run struct {
	opts     Options
	suite    suite
	random   *rand.Rand
	worlds   []*world
	results  *Results
	services int // of now
	done     time.Duration
	total    time.Duration
	// flaws are why a candidate has no figures: of a kind, or of all ("") until
	// there is another number of Services.
	flaws map[flawAt]Flaw
}

type flawAt struct{ candidate, kind string }

// Run compares. It needs root, changes nothing outside of network namespaces and
// cgroups of its own and leaves nothing behind. With an error, of ctx for example,
// come the results until then.
func Run(ctx context.Context, opts Options) (results Results, err error) {
	if err := Preflight(opts); err != nil {
		return Results{}, err
	}
	claim, err := newClaim()
	if err != nil {
		return Results{}, err
	}
	r := &run{opts: opts, suite: newSuite(opts), random: rand.New(rand.NewPCG(opts.Seed, 0)), flaws: map[flawAt]Flaw{}}
	defer func() {
		for _, w := range r.worlds {
			w.close()
		}
		err = errors.Join(err, claim.remove())
	}()
	if r.results, err = newResults(ctx, opts); err != nil {
		return Results{}, err
	}
	err = r.all(ctx, claim)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
		r.results.Interrupted = true
	}
	return *r.results, errors.Join(err, r.results.finish())
}

func (r *run) all(ctx context.Context, claim claim) error {
	r.plan()
	for _, name := range append([]string{twin}, r.opts.Candidates...) {
		r.tell("building the world of "+name, "")
		w, err := newWorld(ctx, claim, programs{r.opts.BinDir, r.opts.KubeProxy}, name)
		if err != nil {
			return err
		}
		w.otherMode = otherMode(name, r.opts.Candidates)
		r.worlds = append(r.worlds, w)
	}
	for _, w := range r.worlds {
		if err := r.try(ctx, w); err != nil {
			return err
		}
	}
	for i, n := range r.opts.Services {
		if err := r.phase(ctx, n, r.kinds(i)); err != nil {
			return err
		}
	}
	return nil
}

// try starts and stops a world's proxy, so that what the machine lacks is said
// before anything is measured.
func (r *run) try(ctx context.Context, w *world) error {
	if isDirect(w.candidate) {
		return nil
	}
	r.tell("trying "+w.candidate, "")
	if err := w.setServices(ctx, 1); err != nil {
		return err
	}
	if _, err := w.coldSync(ctx, r.suite.patience); err != nil {
		return fmt.Errorf("start %s: %w", w.candidate, err)
	}
	return nil
}

// plan adds up about how long everything takes.
func (r *run) plan() {
	for i := range r.opts.Services {
		for _, k := range r.kinds(i) {
			r.total += r.expected(k)
		}
	}
}

// kinds are what is measured with the number of Services at an index.
func (r *run) kinds(i int) []kind {
	first, last := i == 0, i == len(r.opts.Services)-1
	kinds := slices.Concat([]kind{coldSync(r.suite)}, traffic(r.suite), programming(r.suite))
	return slices.DeleteFunc(kinds, func(k kind) bool {
		return k.with == theFirst && !first || k.with == theLast && !last
	})
}

// expected is about how long a kind takes.
func (r *run) expected(k kind) time.Duration {
	candidates := len(r.opts.Candidates)
	if k.proxies {
		candidates--
	} else {
		candidates++ // the twin
	}
	return time.Duration(k.blocks*candidates) * k.about
}

func (r *run) tell(what, note string) {
	r.opts.Progress(Progress{Services: r.services, What: what, Done: r.done, Total: r.total, Note: note})
}

// phase measures with so many Services.
func (r *run) phase(ctx context.Context, services int, kinds []kind) error {
	r.services = services
	clear(r.flaws)
	for _, w := range r.worlds {
		r.tell("setting the cluster of "+w.candidate, "")
		if err := w.setServices(ctx, services); err != nil {
			return err
		}
	}
	for _, k := range kinds {
		if err := r.measure(ctx, k); err != nil {
			return err
		}
		r.done += r.expected(k)
	}
	r.tell("", "")
	return nil
}

// setServices has the API server of a world, whose proxy does not run, tell of so
// many Services: those that are measured and others.
func (w *world) setServices(ctx context.Context, n int) error {
	if isDirect(w.candidate) {
		return nil
	}
	if err := w.cleanup(ctx); err != nil {
		return err
	}
	w.switchedTo = "a"
	w.api.Set(measured(w.switchedTo)...)
	w.api.Set(many(w.services, n-2)...)
	w.services = max(w.services, n-2)
	return nil
}

// measure checks the candidates and measures those that are right.
func (r *run) measure(ctx context.Context, k kind) error {
	r.tell(k.title, "")
	var candidates []bench.Candidate
	for _, w := range r.worlds {
		if k.proxies && isDirect(w.candidate) {
			continue
		}
		if err := r.check(ctx, w, k); err != nil {
			return err
		}
		candidates = append(candidates, bench.Candidate{Name: w.candidate, Slice: func(ctx context.Context) (bench.Sample, error) {
			return r.slice(ctx, w, k)
		}})
	}
	began, expected := r.done, r.expected(k)
	blocks := bench.Blocks{
		Count: k.blocks, Random: r.random, MaxSteal: r.opts.MaxSteal, NoWarmUp: k.noWarmUp,
		Progress: func(p bench.Progress) {
			r.done = began + expected*time.Duration(p.Block)/time.Duration(p.Count)
			r.tell(k.title, "")
		},
	}
	result, err := blocks.Run(ctx, candidates)
	r.done = began
	r.results.add(r, k, result)
	return err
}

// check marks a candidate that is wrong. A baseline that is wrong is an error:
// there is nothing to compare with.
func (r *run) check(ctx context.Context, w *world, k kind) error {
	if k.check == nil || r.flaw(w, k).Wrong != "" {
		return ctx.Err()
	}
	c := k.check(ctx, w)
	if err := ctx.Err(); err != nil {
		return err
	}
	c.Candidate, c.Measure, c.Services = w.candidate, k.id, r.services
	r.results.Checks = append(r.results.Checks, c)
	if c.Wrong == "" {
		return nil
	}
	if isDirect(w.candidate) {
		return fmt.Errorf("check %s of %s: %s", k.title, w.candidate, c.Wrong)
	}
	r.mark(w, k.id, Flaw{Wrong: c.Wrong})
	return nil
}

// flaw is why a candidate is not measured, the zero Flaw if it is.
func (r *run) flaw(w *world, k kind) Flaw {
	if f := r.flaws[flawAt{w.candidate, ""}]; f.Wrong != "" {
		return f
	}
	return r.flaws[flawAt{w.candidate, k.id}]
}

func (r *run) mark(w *world, kind string, f Flaw) {
	r.flaws[flawAt{w.candidate, kind}] = f
	first, _, _ := strings.Cut(f.Verdict(), "\n")
	r.tell("", fmt.Sprintf("%s is %s", w.candidate, first))
}

// slice measures a candidate if it is right.
func (r *run) slice(ctx context.Context, w *world, k kind) (bench.Sample, error) {
	if r.flaw(w, k).Wrong != "" {
		return nil, nil
	}
	sample, err := k.slice(ctx, w)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && isDirect(w.candidate):
		return nil, err
	case err != nil && k.proxies:
		r.mark(w, "", flawOf(err)) // its proxy is not to be trusted
	case err != nil:
		r.mark(w, k.id, flawOf(err))
	}
	return sample, nil
}
