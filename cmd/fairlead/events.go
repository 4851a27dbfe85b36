package main

import (
	"log/slog"
	"sync"

	"github.com/fairlead/fairlead/proxy/watch"
)

// events tells users of the cluster, beside an object of it, what is wrong with it.
type events interface {
	Warn(o watch.Object, reason, message string)
	WarnUID(o watch.Object, uid, reason, message string)
}

// noEvents is for sources whose objects have nobody to look at them.
type noEvents struct{}

// Warn implements events.
func (noEvents) Warn(watch.Object, string, string) {}

// WarnUID implements events.
func (noEvents) WarnUID(watch.Object, string, string, string) {}

// openEvents returns what tells of objects of a source, in the name of a component.
// Without the right to create Events a program works as well: that they are
// refused is logged once.
func openEvents(src source, component string, log *slog.Logger) (events, error) {
	kube, ok := src.(*watch.Kube)
	if !ok {
		return noEvents{}, nil
	}
	var once sync.Once
	return kube.NewEvents(component, func(err error) {
		once.Do(func() { log.Warn("the API server refuses Events; problems are in this log only", "error", err) })
	})
}
