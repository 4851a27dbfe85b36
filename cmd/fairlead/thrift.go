package main

import (
	"os"
	"runtime/debug"
	"sync"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/watch"
)

// thrift is an observer by which a proxy takes less of a node's memory. What is kept
// of a cluster lasts, and what a change needs beside it is little: the garbage
// collector may run after half as much as it would by itself, and what the start needed
// is given back when it is over. Whoever sets GOGC or GOMEMLIMIT is obeyed.
type thrift struct{ started sync.Once }

// gcPercent is GOGC for a proxy.
const gcPercent = 50

// saveMemory is called before anything is kept.
func saveMemory() {
	if os.Getenv("GOGC") == "" && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// News implements proxy.Observer.
func (*thrift) News(watch.News) {}

// Synced implements proxy.Observer.
func (*thrift) Synced(proxy.Round) {}

// UpToDate implements proxy.Observer.
func (t *thrift) UpToDate(proxy.LeftOut) { t.started.Do(debug.FreeOSMemory) }
