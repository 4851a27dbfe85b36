package ebpf

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
)

// watchers are those who look on. The zero value has none.
type watchers struct {
	mu   sync.Mutex // guards sees
	sees map[*func(Report)]bool
}

func (w *watchers) tell(r Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for see := range w.sees {
		(*see)(r)
	}
}

func (w *watchers) add(see *func(Report)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sees == nil {
		w.sees = map[*func(Report)]bool{}
	}
	w.sees[see] = true
}

// remove says how many are left.
func (w *watchers) remove(see *func(Report)) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sees, see)
	return len(w.sees)
}

// Follow passes on what programs report, to see and to all who Watch, until ctx ends.
// Without a Watch that is trouble alone, and not all of it if there is much.
func (d *DataPath) Follow(ctx context.Context, see func(Report)) error {
	reports, err := d.Reports()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = reports.Close() })()
	for {
		r, err := reports.Next()
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return errors.Join(err, reports.Close())
		}
		d.watchers.tell(r)
		see(r)
	}
}

// Programs report all events for lookLasts at a time, so that nothing is left on by a
// process that was killed.
const (
	lookLasts = 5 * time.Second
	lookAgain = 2 * time.Second
)

// Watch has programs report flows that begin and whatever else happens seldom, until
// ctx ends. see is called by Follow, which waits for it. It is safe for concurrent
// use.
func (d *DataPath) Watch(ctx context.Context, see func(Report)) error {
	d.watchers.add(&see)
	defer func() {
		if d.watchers.remove(&see) == 0 {
			_ = d.LookOn(0) // it ends by itself too
		}
	}()
	for {
		if err := d.LookOn(lookLasts); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(lookAgain):
		}
	}
}
