package main

import (
	"context"
	"errors"
	"time"

	"github.com/fairlead/fairlead/cni/hostlocal"
	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/cni/node/install"
	"github.com/fairlead/fairlead/cni/node/metrics"
	"github.com/fairlead/fairlead/cni/sweep"
)

// sweepEvery is how often what pods left that ended without a word is looked for.
// Mostly there is nothing: the runtime says when a pod ends.
const sweepEvery = 5 * time.Minute

// sweep removes what is left of pods that live no more, of every network of ours in
// the runtime's directory.
func (l *nodeLoop) sweep(ctx context.Context) {
	configs, err := l.installer.networks()
	failed := []error{err}
	for _, config := range configs {
		gone, err := sweep.Network(ctx, config)
		failed = append(failed, err)
		l.metrics.Swept(len(gone))
		for _, lease := range gone {
			l.log.Info("swept a pod that ended without a word", "pod", lease.Pod, "container", lease.ContainerID, "interface", lease.IfName, "addresses", lease.Addrs)
		}
	}
	l.unswept = nil
	if err := errors.Join(failed...); err != nil {
		l.metrics.Failed("sweep")
		for _, p := range cninode.Failed(l.name, err) {
			p.Kind = "NotSwept"
			l.unswept = append(l.unswept, p)
		}
	}
	l.report()
}

// networks are the configurations of our plugin that the runtime has.
func (f installFlags) networks() ([][]byte, error) {
	if f.confDir == "" {
		return nil, nil
	}
	return install.Networks(f.confDir)
}

// addresses are the ranges that the plugin gives pods addresses from.
func (f installFlags) addresses(ctx context.Context) ([]metrics.Range, error) {
	configs, err := f.networks()
	failed := []error{err}
	var ranges []metrics.Range
	for _, config := range configs {
		network, usages, err := hostlocal.New().Ranges(ctx, config)
		failed = append(failed, err)
		for _, u := range usages {
			ranges = append(ranges, metrics.Range{
				Network: network, First: u.First.String(), Last: u.Last.String(), Held: u.Used, Cooling: u.Cooling, Free: u.Free,
			})
		}
	}
	return ranges, errors.Join(failed...)
}
