package proxy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// Reasons of Events.
const (
	reasonInvalid  = "InvalidObject"
	reasonConflict = "AddressConflict"
	reasonRefused  = "RefusedByKernel"
)

func (p *Proxy) warn(o watch.Object, reason, message string) {
	if p.Events != nil && o.Name.Name != "" {
		p.Events.Warn(o, reason, message)
	}
}

// reportProblems says what the source could not use, each thing once.
func (p *Proxy) reportProblems(news watch.News) {
	for _, problem := range news.Problems {
		if problem.Note {
			p.Log.Info("not used", "what", problem)
			continue
		}
		p.Log.Error("left out", "problem", problem)
		o := problem.Object
		problem.Object = watch.Object{} // the Event is that object's
		p.warn(o, reasonInvalid, fmt.Sprintf("left out by the service proxy: %s", problem))
	}
	for _, problem := range news.Mended {
		p.Log.Info("mended", "problem", problem)
	}
}

// reportConflicts says of each conflict when it begins and when it ends.
func (p *Proxy) reportConflicts() {
	now := map[service.Conflict]bool{}
	for _, c := range p.Resolver.Conflicts() {
		now[c] = true
		if p.reported[c] {
			continue
		}
		p.Log.Warn("two Services claim one destination; the older has it",
			"destination", c.Key, "winner", c.Winner, "loser", c.Loser)
		p.warn(watch.ServiceObject(c.Loser.Service), reasonConflict,
			fmt.Sprintf("%s is not led to %s: %s, which is older, claims it too", c.Key, c.Loser, c.Winner))
	}
	for c := range p.reported {
		if !now[c] {
			p.Log.Info("two Services no longer claim one destination", "destination", c.Key, "loser", c.Loser)
		}
	}
	p.reported = now
}

// reportRefused says which Services are in quarantine from now on.
func (p *Proxy) reportRefused(refused *service.RefusedError) {
	if p.quarantined == nil {
		p.quarantined = map[service.Name]bool{}
	}
	for _, name := range slices.SortedFunc(maps.Keys(refused.Services), service.Name.Compare) {
		if p.again[name] {
			continue
		}
		why := refused.Services[name]
		p.quarantined[name] = true
		p.refusedAt, p.refusedWait = time.Now(), refusedMin
		p.Log.Error("the kernel does not take a Service; it is not served, will be tried again", "service", name, "error", why)
		p.warn(watch.ServiceObject(name), reasonRefused, fmt.Sprintf("not served, will be tried again: %v", why))
	}
}

// reportServed says, when all is done, which Services are in quarantine no more.
func (p *Proxy) reportServed() {
	still := p.Resolver.Quarantined()
	for name := range p.quarantined {
		if !slices.Contains(still, name) {
			p.Log.Info("a Service is out of quarantine", "service", name)
			delete(p.quarantined, name)
		}
	}
}
