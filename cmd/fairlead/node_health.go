package main

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/fairlead/fairlead/proxy/watch"
)

// nodeHealth answers how 'fairlead node' is:
//
//	/healthz  it works: nothing has failed, and the cluster was followed, for longer
//	          than unhealthyAfter
//	/readyz   pods of this node are connected
//
// It is safe for concurrent use.
type nodeHealth struct {
	stale func(now time.Time) error // why the source may not know of a change; nil: it cannot happen

	mu     sync.Mutex
	ready  bool      // what was last planned is in the kernel, and pods can be made
	failed time.Time // since when it fails; zero: it does not
}

// unhealthyAfter is how long trying again is worth while: it includes several of
// the longest waits between two tries.
const unhealthyAfter = time.Minute

func (h *nodeHealth) tell(ok, ready bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready = ok && ready
	switch {
	case ok:
		h.failed = time.Time{}
	case h.failed.IsZero():
		h.failed = time.Now()
	}
}

// trouble is why it does not work, nil if it does.
func (h *nodeHealth) trouble(now time.Time) error {
	h.mu.Lock()
	failed := h.failed
	h.mu.Unlock()
	if !failed.IsZero() && now.Sub(failed) >= unhealthyAfter {
		return fmt.Errorf("it fails since %s: see the log", failed.Format(time.RFC3339))
	}
	if h.stale == nil {
		return nil
	}
	err := h.stale(now)
	var stale *watch.StaleError
	if errors.As(err, &stale) && now.Sub(stale.Last) < unhealthyAfter {
		return nil
	}
	return err
}

// unready is why pods are not connected, nil if they are.
func (h *nodeHealth) unready() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ready {
		return errors.New("pods are not connected: see the log")
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (h *nodeHealth) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var err error
	switch r.URL.Path {
	case "/healthz":
		err = h.trouble(time.Now())
	case "/readyz":
		err = h.unready()
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
