package main

import (
	"fmt"
	"net/http"
	"sync"
	"time"
)

// nodeHealth answers how 'fairlead node' is:
//
//	/healthz  it works, and if something failed it is not for longer than unhealthyAfter
//	/readyz   pods of this node are connected
//
// It is safe for concurrent use.
type nodeHealth struct {
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

// ServeHTTP implements http.Handler.
func (h *nodeHealth) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	ready, failed := h.ready, h.failed
	h.mu.Unlock()
	var ok bool
	switch r.URL.Path {
	case "/healthz":
		ok = failed.IsZero() || time.Since(failed) < unhealthyAfter
	case "/readyz":
		ok = ready
	default:
		http.NotFound(w, r)
		return
	}
	if !ok {
		http.Error(w, "not ok: see the log", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
