// Package health says, over HTTP, whether this node's proxy does its work, as
// kube-proxy does (KEP-3836), so that load balancers and probes need not know
// which of the two they ask.
//
//	/livez    the process keeps the kernel up to date: else restart it
//	/healthz  besides, the node should get new flows from a load balancer
//
// It is told what happens by the loop of package proxy, and asked by anybody.
package health

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/watch"
)

// Late is how long news may wait for the kernel before the proxy counts as ill:
// twice kube-proxy's sync period.
const Late = 60 * time.Second

// Monitor knows how the proxy is, as an Observer of its loop. It is safe for
// concurrent use.
type Monitor struct {
	// Stale, if set, says why the source may not know of a change. That is told
	// with every answer, but is no reason for a 503: a new process would know no
	// more, and other nodes are no better off.
	Stale func(now time.Time) error
	// Asked, if set, is told of each answer to a probe, "/livez" or "/healthz".
	Asked func(probe string, code int)

	node string
	now  func() time.Time

	mu      sync.Mutex
	waiting time.Time // since when the kernel lacks something; zero: it does not
	synced  time.Time // when the kernel last agreed with the Table; zero: not yet
	leaving bool      // the node's object says that it will go
}

// NewMonitor returns the Monitor of the node with that name. A proxy that has
// just started has Late to program the kernel for the first time.
func NewMonitor(node string, now func() time.Time) *Monitor {
	return &Monitor{node: node, now: now, waiting: now()}
}

// News is told that something changed that the kernel does not have yet.
func (m *Monitor) News(news watch.News) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if node, ok := news.Update.Nodes[m.node]; ok {
		m.leaving = node == nil || node.Leaving
	}
	if m.waiting.IsZero() {
		m.waiting = m.now()
	}
}

// UpToDate is told that the kernel agrees with the Table.
func (m *Monitor) UpToDate(proxy.LeftOut) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting, m.synced = time.Time{}, m.now()
}

// Synced changes nothing: UpToDate follows when all is well.
func (m *Monitor) Synced(proxy.Round) {}

// state is what the answers are made of.
type state struct {
	now, updated time.Time
	live         bool
	programmed   bool // at least once
	eligible     bool
}

func (m *Monitor) state() state {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := state{now: m.now(), updated: m.synced, eligible: !m.leaving, programmed: !m.synced.IsZero()}
	if m.waiting.IsZero() {
		s.updated = s.now // up to date as of now, however long ago the last change was
	}
	s.live = m.waiting.IsZero() || s.now.Sub(m.waiting) < Late
	return s
}

// Works says whether the proxy has programmed the kernel and keeps it up to date,
// whether its node stays or not.
func (m *Monitor) Works() bool {
	s := m.state()
	return s.live && s.programmed
}

// Handler answers /livez and /healthz: 200 or 503, and why in JSON with
// kube-proxy's keys.
func (m *Monitor) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		s := m.state()
		m.answer(w, "/livez", s.live, s)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		s := m.state()
		m.answer(w, "/healthz", s.live && s.programmed && s.eligible, s)
	})
	return mux
}

func (m *Monitor) answer(w http.ResponseWriter, probe string, ok bool, s state) {
	stale := ""
	if m.Stale != nil {
		if err := m.Stale(s.now); err != nil {
			stale = err.Error()
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	code := http.StatusOK
	if !ok {
		code = http.StatusServiceUnavailable
	}
	if m.Asked != nil {
		m.Asked(probe, code)
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(s.body(stale)) // a client that is gone does not hear it
}

// body is an answer.
type body struct {
	LastUpdated  time.Time         `json:"lastUpdated"`
	CurrentTime  time.Time         `json:"currentTime"`
	NodeEligible bool              `json:"nodeEligible"`
	Healthy      bool              `json:"healthy"`
	Status       map[string]family `json:"status,omitempty"`
	Stale        string            `json:"stale,omitempty"`
}

type family struct {
	LastUpdated time.Time `json:"lastUpdated"`
	Healthy     bool      `json:"healthy"`
}

// body has both families, which one loop keeps up to date, once they were.
func (s state) body(stale string) body {
	b := body{LastUpdated: s.updated, CurrentTime: s.now, NodeEligible: s.eligible, Healthy: s.live, Stale: stale}
	if s.programmed {
		f := family{s.updated, s.live}
		b.Status = map[string]family{"IPv4": f, "IPv6": f}
	}
	return b
}
