package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"time"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/bench/load"
)

var (
	failedMeanwhile = figure{failed, "connections that failed meanwhile, of 200 a second", "", false}
	longestOfOthers = figure{longest, "the longest of the others", "ms", false}
)

// proxyTime is the processor time of the proxy and of the programs that it ran.
func proxyTime(of string) figure { return figure{cpu, "processor time of the proxy" + of, "ms", false} }

// programming are the kinds that measure the proxies themselves, but for the
// first, cold, which starts them.
func programming(s suite) []kind {
	return []kind{{
		id: "change", title: "One endpoint changed", proxies: true, with: all, blocks: s.changes, about: 200 * time.Millisecond,
		figures: []figure{
			{changed, "until the first connection to the new endpoint", "ms", false}, proxyTime(""),
			{resident, "resident memory of the proxy", "MB", false}, {mapsSize, "memory of its maps in the kernel", "MB", false},
		},
		slice: func(ctx context.Context, w *world) (bench.Sample, error) { return w.change(ctx, s.patience) },
	}, {
		id: "changes", title: "Ten endpoints changed in a second", proxies: true, with: all, noWarmUp: true, blocks: s.bursts, about: 2 * time.Second,
		figures: []figure{
			{changed, "until the first connection to the new endpoint", "ms", false},
			{slowest, "the longest of the ten", "ms", false}, proxyTime(" for all ten"),
		},
		slice: func(ctx context.Context, w *world) (bench.Sample, error) { return w.changes(ctx, s.patience) },
	}, {
		id: "restart", title: "The proxy is killed and started again", proxies: true, with: all, noWarmUp: true, blocks: s.restarts, about: 2 * time.Second,
		figures: []figure{{warm, "until it has found everything in place", "ms", false}, proxyTime(""), failedMeanwhile, longestOfOthers},
		slice: func(ctx context.Context, w *world) (bench.Sample, error) {
			return w.replace(ctx, s.patience, w.killProxy, w.proxyCommand)
		},
	}, {
		id: "update", title: "The proxy is stopped and started again, as for an upgrade", proxies: true, with: theLast, noWarmUp: true, blocks: s.restarts, about: 2 * time.Second,
		figures: []figure{{warm, "until it has found everything in place", "ms", false}, failedMeanwhile, longestOfOthers},
		slice: func(ctx context.Context, w *world) (bench.Sample, error) {
			return w.replace(ctx, s.patience, w.stopProxy, w.proxyCommand)
		},
	}, {
		id: "mode", title: "The proxy goes over to the other mode, and back", proxies: true, with: theLast, noWarmUp: true, blocks: s.restarts, about: 6 * time.Second,
		figures: []figure{{warm, "until all Services work, back in its own mode", "ms", false}, failedMeanwhile, longestOfOthers},
		slice:   func(ctx context.Context, w *world) (bench.Sample, error) { return w.switchModes(ctx, s.patience) },
	}}
}

// coldSync starts the proxies on a node without rules.
func coldSync(s suite) kind {
	return kind{
		id: "cold", title: "The proxy starts on a fresh node", proxies: true, with: all, noWarmUp: true, blocks: s.cold, about: 3 * time.Second,
		figures: []figure{{cold, "until all Services work", "ms", false}, proxyTime(""), {peak, "peak memory of the proxy", "MB", false}},
		slice:   func(ctx context.Context, w *world) (bench.Sample, error) { return w.coldSync(ctx, s.patience) },
	}
}

func (w *world) coldSync(ctx context.Context, limit time.Duration) (bench.Sample, error) {
	if err := w.cleanup(ctx); err != nil {
		return nil, err
	}
	sample := bench.Sample{}
	err := w.timed(sample, func() error {
		took, err := w.start(ctx, limit, w.proxyCommand())
		sample[cold] = []float64{milliseconds(took)}
		return err
	})
	if err != nil {
		return nil, err
	}
	// That it says so is not enough.
	vip := netip.AddrPortFrom(webVIP[0], vipPort)
	if _, err := w.pod.order(ctx, load.Order{What: load.OrderWho, Network: "tcp", To: vip, Count: 1}); err != nil {
		return nil, fmt.Errorf("after the proxy has said that everything is programmed: %w", err)
	}
	_, most, err := w.memory()
	sample[peak] = []float64{most / 1e6}
	return sample, err
}

// timed adds to a sample the processor time that the proxy took while something
// was done, if the machine counts it.
func (w *world) timed(sample bench.Sample, do func() error) error {
	before, counted, err := w.proxyTime()
	if err != nil {
		return err
	}
	if err := do(); err != nil || !counted {
		return err
	}
	after, _, err := w.proxyTime()
	sample[cpu] = []float64{milliseconds(after - before)}
	return err
}

// change has the Service switch lead to the other of two backends.
func (w *world) change(ctx context.Context, limit time.Duration) (bench.Sample, error) {
	sample := bench.Sample{}
	err := w.timed(sample, func() error {
		took, err := w.lead(ctx, limit)
		sample[changed] = []float64{milliseconds(took)}
		return err
	})
	if err != nil {
		return nil, err
	}
	now, _, err := w.memory()
	if err != nil {
		return nil, err
	}
	sample[resident] = []float64{now / 1e6}
	if w.candidate == EBPF {
		bytes, err := w.mapMemory()
		if err != nil {
			return nil, err
		}
		sample[mapsSize] = []float64{bytes / 1e6}
	}
	return sample, nil
}

// changes are ten in a second, or as many as the proxy keeps up with.
func (w *world) changes(ctx context.Context, limit time.Duration) (bench.Sample, error) {
	const count = 10
	sample, most := bench.Sample{}, time.Duration(0)
	err := w.timed(sample, func() error {
		due := time.NewTicker(time.Second / count)
		defer due.Stop()
		for range count {
			took, err := w.lead(ctx, limit)
			if err != nil {
				return err
			}
			sample[changed] = append(sample[changed], milliseconds(took))
			most = max(most, took)
			<-due.C
		}
		return nil
	})
	sample[slowest] = []float64{milliseconds(most)}
	return sample, err
}

// lead has the Service switch lead to the other of two backends, and returns how
// long it took until it did.
func (w *world) lead(ctx context.Context, limit time.Duration) (time.Duration, error) {
	next := map[string]string{"a": "b", "b": "a"}[w.switchedTo]
	objects := slicesOf("switch", next)
	began := load.Clock()
	w.api.Set(objects...)
	r, err := w.pod.order(ctx, load.Order{
		What: load.OrderUntil, To: netip.AddrPortFrom(switchVIP[0], vipPort), Server: next, During: limit,
	})
	if err != nil {
		return 0, err
	}
	w.switchedTo = next
	return r.At - began, nil
}

// replace ends the proxy and starts another, while connections are made.
func (w *world) replace(ctx context.Context, limit time.Duration, end func(), other func() *exec.Cmd) (bench.Sample, error) {
	return w.steadily(ctx, func(sample bench.Sample) error {
		end()
		return w.timed(sample, func() error {
			took, err := w.start(ctx, limit, other())
			sample[warm] = []float64{milliseconds(took)}
			return err
		})
	})
}

// switchModes has the proxy go over to Fairlead's other mode and back. There is
// nothing to measure where no candidate has shown that it works here.
func (w *world) switchModes(ctx context.Context, limit time.Duration) (bench.Sample, error) {
	if w.otherMode == "" {
		return nil, nil
	}
	return w.steadily(ctx, func(sample bench.Sample) error {
		w.stopProxy()
		if _, err := w.start(ctx, limit, w.fairleadCommand(w.otherMode)); err != nil {
			return err
		}
		w.stopProxy()
		took, err := w.start(ctx, limit, w.proxyCommand())
		sample[warm] = []float64{milliseconds(took)}
		return err
	})
}

// steadily does something while a pod makes connections at a steady rate, and one
// goes on all the time. It adds to the sample what became of those.
func (w *world) steadily(ctx context.Context, do func(bench.Sample) error) (bench.Sample, error) {
	vip := netip.AddrPortFrom(webVIP[0], vipPort)
	if err := w.pod.tell(load.Order{What: load.OrderSteady, To: vip}); err != nil {
		return nil, err
	}
	sample := bench.Sample{}
	done := do(sample)
	r, err := w.pod.order(ctx, load.Order{What: load.OrderStop})
	if err := errors.Join(done, err); err != nil {
		return nil, err
	}
	sample[failed], sample[longest] = []float64{float64(r.Loss.Failed)}, []float64{r.Loss.LongestMs}
	return sample, nil
}

// start starts a proxy and returns how long it took until it had programmed
// everything.
func (w *world) start(ctx context.Context, limit time.Duration, proxy *exec.Cmd) (time.Duration, error) {
	began, err := w.startProxy(proxy)
	if err != nil {
		return 0, err
	}
	guarded, stop := w.guard(ctx, limit)
	defer stop()
	err = w.awaitSynced(guarded)
	return load.Clock() - began, err
}
