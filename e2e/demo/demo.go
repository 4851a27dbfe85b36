// Package demo is what fairlead-lab demo shows: a cluster is built, and each
// promise of Fairlead is a check on it. What a check finds it says in a line for
// a person; the Report holds the same for a program.
//
// Everything is observed from outside: pods ask pods and virtual IPs, and what
// the answers say is what counts. Nothing is waited for by time.
package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Report is the outcome of a demo, in the form that -o json prints.
type Report struct {
	OK     bool    `json:"ok"` // every check is
	Checks []Check `json:"checks"`
	// Spread is protocol → backend → how many connections it answered, of those
	// that were opened one after the other to the IPv4 virtual IP.
	Spread map[string]map[string]int `json:"spread"`
}

// Check is one promise and whether it was kept.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // what was seen, or what went wrong
}

// Observer is told of each check as it begins and ends.
type Observer interface {
	Begin(name string)
	End(Check)
}

// Run builds a cluster, checks it and takes it down. A check that fails is in
// the Report; the error is for a demo that was not brought to its end.
func Run(ctx context.Context, opts lab.Options, observer Observer) (Report, error) {
	r := newRecorder(observer)
	s := new(Scene)
	if r.build(ctx, opts, s) == nil {
		r.checkAll(ctx, s)
	}
	return r.report, errors.Join(context.Cause(ctx), s.Close())
}

// checkAll runs the checks on a scene, one after the other, until a proxy ends.
func (r *recorder) checkAll(ctx context.Context, s *Scene) {
	guarded, stop := s.Lab.Guard(ctx)
	defer stop()
	_ = r.check(guarded, "pod to pod, one node", s.onOneNode)
	if len(s.Lab.Nodes) > 1 {
		_ = r.check(guarded, "routes", s.routes)
		_ = r.check(guarded, "pod to pod, across nodes", s.acrossNodes)
	}
	for _, vip := range lab.VIPs(s.web) {
		name := fmt.Sprintf("virtual IP, %s, %s", vip.Network, family(vip.Addr.Addr()))
		_ = r.check(guarded, name, func(ctx context.Context) (string, error) {
			return s.spread(ctx, vip, r.report.Spread)
		})
	}
	_ = r.check(guarded, "virtual IP from every node", s.fromEveryNode)
	_ = r.check(guarded, "no endpoints", s.refused)
	_ = r.check(guarded, "pod reaches itself", s.hairpin)
	_ = r.check(guarded, "backend removed and added", s.churn)
	_ = r.check(ctx, "proxies still run", func(context.Context) (string, error) {
		return "on every node", context.Cause(guarded)
	})
}

// recorder runs checks and keeps their outcomes.
type recorder struct {
	observer Observer
	report   Report
}

func newRecorder(observer Observer) *recorder {
	r := &recorder{observer, Report{OK: true, Checks: []Check{}, Spread: map[string]map[string]int{}}}
	for _, network := range lab.Networks {
		r.report.Spread[network] = map[string]int{}
	}
	return r
}

// checkTimeout ends a check that waits in vain. An emulated machine takes half of it.
const checkTimeout = time.Minute

// check runs one check and returns what made it fail, which is in the report.
// When ctx is over there is nothing left to check.
func (r *recorder) check(ctx context.Context, name string, run func(context.Context) (string, error)) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	r.observer.Begin(name)
	limited, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("not within %s", checkTimeout))
	defer cancel()
	detail, err := run(limited)
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx) // says more than what it broke off
	}
	if err != nil {
		detail = err.Error()
	}
	c := Check{Name: name, OK: err == nil, Detail: detail}
	r.report.Checks = append(r.report.Checks, c)
	r.report.OK = r.report.OK && c.OK
	r.observer.End(c)
	return err
}
