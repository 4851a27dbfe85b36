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
//	          than unhealthyAfter. It may wait for a person, and says for what
//	/readyz   pods of this node are connected
//
// It is safe for concurrent use.
type nodeHealth struct {
	stale func(now time.Time) error // why the source may not know of a change; nil: it cannot happen

	mu     sync.Mutex
	ready  bool      // what was last planned is in the kernel, and pods can be made
	failed time.Time // since when it fails; zero: it does not
	waits  string    // what a person has to do before pods can be made; "": nothing
}

// unhealthyAfter is how long trying again is worth while: it includes several of
// the longest waits between two tries.
const unhealthyAfter = time.Minute

func (h *nodeHealth) tell(ok, ready bool, waits string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ready, h.waits = ok && ready && waits == "", waits
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
	switch {
	case h.waits != "":
		return errors.New(h.waits)
	case !h.ready:
		return errors.New("pods are not connected: see the log")
	}
	return nil
}

// waiting says what a person has to do, "" if nothing.
func (h *nodeHealth) waiting() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waits
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
	if waits := h.waiting(); waits != "" {
		fmt.Fprintln(w, "waiting:", waits)
		return
	}
	fmt.Fprintln(w, "ok")
}
