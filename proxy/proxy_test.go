package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// script is a Source that hands out updates as the test sends them.
type script chan service.Update

func (s script) Next(ctx context.Context) (watch.News, error) {
	select {
	case u, open := <-s:
		if !open {
			return watch.News{}, errors.New("source is broken")
		}
		return watch.News{Update: u}, nil
	case <-ctx.Done():
		return watch.News{}, ctx.Err()
	}
}

// recorder is a Backend that notes when it was asked for what, and fails on
// demand.
type recorder struct {
	start  time.Time
	fail   int
	calls  []call
	refuse service.Name // as long as the Table has it
	// flushedAt is when somebody removes the rules; 0: never.
	flushedAt time.Duration
}

type call struct {
	After     time.Duration
	Frontends int // in the Table
	Changed   int
}

func (r *recorder) Sync(_ context.Context, t *service.Table, change service.Change) error {
	r.calls = append(r.calls, call{time.Since(r.start), len(t.Frontends), len(change.Frontends)})
	if r.fail > 0 {
		r.fail--
		return errors.New("kernel says no")
	}
	for _, f := range t.Frontends {
		if f.Origin.Service == r.refuse {
			return fmt.Errorf("wrapped: %w", &service.RefusedError{Services: map[service.Name]error{r.refuse: errors.New("bad rule")}})
		}
	}
	return nil
}

func (r *recorder) Intact() (bool, error) {
	if r.flushedAt > 0 && time.Since(r.start) >= r.flushedAt {
		r.flushedAt = 0
		return false, nil
	}
	return true, nil
}

func (*recorder) Cleanup(context.Context) error { return nil }

// observed notes what an Observer is told.
type observed struct{ words []string }

func (o *observed) News(watch.News) { o.words = append(o.words, "news") }
func (o *observed) Synced(r Round) {
	o.words = append(o.words, fmt.Sprintf("synced %d, error %v", len(r.Table.Frontends), r.Err))
}
func (o *observed) UpToDate(LeftOut) { o.words = append(o.words, "up to date") }

func oneService(name string) service.Update {
	n := service.Name{Namespace: "default", Name: name}
	return service.Update{Services: map[service.Name]*service.Service{n: {
		Name:       n,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports:      []service.ServicePort{{Port: service.Port{Protocol: service.TCP, Number: 80}}},
	}}}
}

// run runs a Proxy over the steps in a bubble with a clock of its own, and
// returns what the backend was asked, and the log.
func run(t *testing.T, fail int, steps func(source script)) (calls []call, log string, err error) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source, backend := make(script), &recorder{start: time.Now(), fail: fail}
		var logged bytes.Buffer
		p := Proxy{
			Source:   source,
			Resolver: service.NewResolver(service.Config{}),
			Backend:  backend,
			Log:      slog.New(slog.NewTextHandler(&logged, nil)),
		}
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		steps(source)
		synctest.Wait()
		cancel()
		err = <-ended
		calls, log = backend.calls, logged.String()
	})
	return calls, log, err
}

func TestRunSyncsWhatChanged(t *testing.T) {
	calls, _, err := run(t, 0, func(source script) {
		source <- service.Update{} // a cluster without Services: the first Sync is due all the same
		source <- oneService("a")
		source <- oneService("a") // nothing new
	})
	if err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]call{{0, 0, 0}, {0, 1, 1}}, calls); diff != "" {
		t.Error(diff)
	}
}

func TestObserversAndHealthChecks(t *testing.T) {
	var o observed
	checks := make(answered)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := make(script)
		p := Proxy{
			Source: source, Resolver: service.NewResolver(service.Config{}), Backend: &recorder{fail: 1},
			Log: slog.New(slog.DiscardHandler), Observers: []Observer{&o}, HealthChecks: checks,
		}
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		u := oneService("a")
		for _, svc := range u.Services {
			svc.ExternalLocal, svc.HealthCheckPort = true, 30100
		}
		source <- u
		time.Sleep(200 * time.Millisecond)
		source <- u // nothing new
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	want := []string{
		"news", "synced 1, error kernel says no",
		"news", "synced 1, error <nil>", "up to date", // the retry
		"news", "up to date",
	}
	if diff := cmp.Diff(want, o.words); diff != "" {
		t.Error(diff)
	}
	if _, ok := checks["default/a 30100"]; !ok {
		t.Errorf("health checks: %v", checks)
	}
}

// answered notes the health checks that are to be answered.
type answered map[string]bool

func (a answered) Sync(_ context.Context, checks map[service.Name]service.HealthCheck) error {
	for name, check := range checks {
		a[fmt.Sprint(name, " ", check.Port)] = true
	}
	return nil
}

func TestRunRetries(t *testing.T) {
	calls, log, _ := run(t, 3, func(source script) {
		source <- oneService("a")
		time.Sleep(time.Second)
		source <- oneService("a") // nothing new, and by now nothing to retry
	})
	ms := time.Millisecond
	if diff := cmp.Diff([]call{{0, 1, 1}, {100 * ms, 1, 0}, {300 * ms, 1, 0}, {700 * ms, 1, 0}}, calls); diff != "" {
		t.Error(diff)
	}
	if n := strings.Count(log, "kernel says no"); n != 3 {
		t.Errorf("%d failures logged, want 3:\n%s", n, log)
	}
}

func TestNewsIsNotKeptWaitingByRetry(t *testing.T) {
	calls, _, _ := run(t, 7, func(source script) {
		source <- service.Update{}
		time.Sleep(7 * time.Second) // the seventh try is due at 6.3 s, the eighth at 12.7 s
		source <- oneService("a")
	})
	if last := calls[len(calls)-1]; last != (call{7 * time.Second, 1, 1}) {
		t.Errorf("last Sync: %+v", last)
	}
}

// What others removed is made anew, also while there is news all the time.
func TestRunMendsWhatOthersRemoved(t *testing.T) {
	for name, news := range map[string]time.Duration{"quiet": time.Hour, "busy": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				source := make(script)
				backend := &recorder{start: time.Now(), flushedAt: 25 * time.Second}
				p := Proxy{Source: source, Resolver: service.NewResolver(service.Config{}), Backend: backend, Log: slog.New(slog.DiscardHandler)}
				ended := make(chan error)
				go func() { ended <- p.Run(ctx) }()
				source <- service.Update{}
				for at := news; at < 40*time.Second; at += news {
					time.Sleep(news)
					source <- service.Update{}
				}
				time.Sleep(40*time.Second - time.Since(backend.start))
				cancel()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff([]call{{0, 0, 0}, {25 * time.Second, 0, 0}}, backend.calls); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

func TestRunEndsWithItsSource(t *testing.T) {
	_, _, err := run(t, 0, func(source script) { close(source) })
	if err == nil || err.Error() != "source is broken" {
		t.Errorf("error: %v", err)
	}
}

func TestConflictIsLoggedOnce(t *testing.T) {
	_, log, _ := run(t, 0, func(source script) {
		source <- oneService("b")
		source <- oneService("a")
		source <- service.Update{}
		source <- service.Update{Services: map[service.Name]*service.Service{{Namespace: "default", Name: "a"}: nil}}
	})
	for _, want := range []string{
		`msg="two Services claim one destination; the older has it" destination=10.96.0.1:80/tcp winner=default/a loser=default/b`,
		`msg="two Services no longer claim one destination"`,
	} {
		if strings.Count(log, want) != 1 {
			t.Errorf("want once: %s\nlog:\n%s", want, log)
		}
	}
}

// told are the Events of a test.
type told []string

func (e *told) Warn(o watch.Object, reason, message string) {
	*e = append(*e, fmt.Sprintf("%s %s: %s", o, reason, message))
}

// A Service that the kernel does not take is left out at once, the others are
// served; it is tried again when it changes.
func TestRefusedService(t *testing.T) {
	var logged bytes.Buffer
	var events told
	var left []int
	backend := &recorder{refuse: service.Name{Namespace: "default", Name: "bad"}}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := make(script)
		backend.start = time.Now()
		p := Proxy{
			Source: source, Resolver: service.NewResolver(service.Config{}), Backend: backend, Events: &events,
			Log: slog.New(slog.NewTextHandler(&logged, nil)), Observers: []Observer{counted{&left}},
		}
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		source <- oneService("bad")
		other := oneService("other")
		for _, svc := range other.Services {
			svc.ClusterIPs = []netip.Addr{netip.MustParseAddr("10.96.0.2")}
		}
		source <- other
		backend.refuse = service.Name{}
		bad := oneService("bad")
		for _, svc := range bad.Services {
			svc.Created = time.Unix(1, 0)
		}
		source <- bad
		synctest.Wait()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	want := []call{{0, 1, 1}, {0, 0, 1}, {0, 1, 1}, {0, 2, 1}}
	if diff := cmp.Diff(want, backend.calls); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{1, 1, 0}, left); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(told{"Service default/bad RefusedByKernel: not served, will be tried again: bad rule"}, events); diff != "" {
		t.Error(diff)
	}
	for _, want := range []string{"the kernel does not take a Service", "out of quarantine"} {
		if strings.Count(logged.String(), want) != 1 {
			t.Errorf("want once: %s\nlog:\n%s", want, &logged)
		}
	}
}

// A Service that the kernel does not take is tried again, ever more seldom, without a
// word, until it is taken.
func TestRefusedServiceIsTriedAgain(t *testing.T) {
	var logged bytes.Buffer
	backend := &recorder{refuse: service.Name{Namespace: "default", Name: "bad"}}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := make(script)
		backend.start = time.Now()
		p := Proxy{Source: source, Resolver: service.NewResolver(service.Config{}), Backend: backend, Log: slog.New(slog.NewTextHandler(&logged, nil))}
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		source <- oneService("bad")
		time.Sleep(time.Minute)
		backend.refuse = service.Name{}
		time.Sleep(time.Hour)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	var tried []time.Duration
	for _, c := range backend.calls {
		if c.Frontends == 1 {
			tried = append(tried, c.After)
		}
	}
	if want := []time.Duration{0, 10 * time.Second, 30 * time.Second, 70 * time.Second}; !slices.Equal(tried, want) {
		t.Errorf("tried after %v, want %v", tried, want)
	}
	for _, want := range []string{"the kernel does not take a Service", "out of quarantine"} {
		if strings.Count(logged.String(), want) != 1 {
			t.Errorf("want once: %s\nlog:\n%s", want, &logged)
		}
	}
}

// counted notes how many Services are in quarantine.
type counted struct{ quarantined *[]int }

func (counted) News(watch.News)         {}
func (counted) Synced(Round)            {}
func (c counted) UpToDate(left LeftOut) { *c.quarantined = append(*c.quarantined, left.Quarantined) }

// Objects that are wrong and Services that lose to others hear of it.
func TestEvents(t *testing.T) {
	var events told
	p := Proxy{Resolver: service.NewResolver(service.Config{}), Events: &events, Log: slog.New(slog.DiscardHandler)}
	web := watch.ServiceObject(service.Name{Namespace: "default", Name: "web"})
	p.reportProblems(watch.News{Problems: []watch.Problem{
		{Object: web, Field: "spec.ports[0].port", Message: "must be 1 to 65535"},
		{Object: web, Message: "unused", Note: true},
		{Message: "a file without an object"},
	}})
	p.Resolver.Apply(oneService("a"))
	p.Resolver.Apply(oneService("b"))
	p.reportConflicts()
	p.reportConflicts()
	want := told{
		"Service default/web InvalidObject: left out by the service proxy: spec.ports[0].port: must be 1 to 65535",
		"Service default/b AddressConflict: 10.96.0.1:80/tcp is not led to default/b: default/a, which is older, claims it too",
	}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Error(diff)
	}
}
