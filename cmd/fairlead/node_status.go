package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/proxy/inspect"
)

// defaultNodeSocket is where 'fairlead node' answers 'fairlead status'.
const defaultNodeSocket = "/run/fairlead/node.sock"

// nodeStatus is how 'fairlead node' is.
type nodeStatus struct {
	Version    string    `json:"version"`
	Node       string    `json:"node"`
	Started    time.Time `json:"started"`
	Source     string    `json:"source"` // where objects come from
	Heard      time.Time `json:"heard,omitzero"`
	Stale      string    `json:"stale,omitempty"` // why the source may not know of a change; "": it does
	Routing    string    `json:"routing"`
	Masquerade string    `json:"masquerade"`

	nodeCounts
	Problems []cninode.Problem `json:"problems,omitempty"`
	// Peers are how the pods of each other node are reached; nil if the loop did not come
	// to it.
	Peers []cninode.Peer `json:"peers,omitempty"`
	// Ranges are blocks of pools, and other ranges of which pods have addresses.
	Ranges []usage `json:"ranges,omitempty"`
}

// nodeCounts are what the loop knows after each attempt to have the kernel agree.
type nodeCounts struct {
	Connected  bool `json:"connected"`        // the kernel has what was last planned, and pods can be made
	Nodes      int  `json:"nodes"`            // of the cluster, this one too
	Wanted     int  `json:"routesWanted"`     // to other nodes' pods and, for pods, to nodes behind tunnels
	Programmed int  `json:"routesProgrammed"` // that the kernel has
	Tunnels    int  `json:"tunnels"`
	MTU        int  `json:"mtu"` // of pods
}

// Healthy says whether the pods of the node are connected.
func (s nodeStatus) Healthy() bool { return s.Connected && s.Stale == "" }

// nodeInspector gathers what the loop tells it, and answers operators.
type nodeInspector struct {
	facts nodeStatus // what does not change
	stale func(now time.Time) error
	heard func() time.Time
	// ranges reads how full the ranges of addresses are.
	ranges func(context.Context) ([]usage, error)
	// peers says how other nodes are reached.
	peers func(context.Context) ([]cninode.Peer, error)

	mu       sync.Mutex // guards what follows
	counts   nodeCounts
	problems []cninode.Problem
}

// tried notes what there is after an attempt.
func (i *nodeInspector) tried(c nodeCounts) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.counts = c
}

// noted notes what is wrong now.
func (i *nodeInspector) noted(problems map[cninode.Problem]bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.problems = nil
	for p := range problems {
		i.problems = append(i.problems, p)
	}
	slices.SortFunc(i.problems, func(a, b cninode.Problem) int { return strings.Compare(a.String(), b.String()) })
}

func (i *nodeInspector) status(ctx context.Context) nodeStatus {
	s := i.facts
	i.mu.Lock()
	s.nodeCounts, s.Problems = i.counts, slices.Clone(i.problems)
	i.mu.Unlock()
	if i.stale != nil {
		if err := i.stale(time.Now()); err != nil {
			s.Stale = err.Error()
		}
		s.Heard = i.heard()
	}
	var err error
	if s.Ranges, err = i.ranges(ctx); err != nil {
		s.Problems = append(s.Problems, cninode.Problem{Kind: "AddressesUnknown", Member: s.Node, Text: err.Error()})
	}
	if s.Peers, err = i.peers(ctx); err != nil {
		s.Problems = append(s.Problems, cninode.Problem{Kind: "PeersUnknown", Member: s.Node, Text: err.Error()})
	}
	return s
}

// ServeHTTP implements http.Handler: it answers GET /status, in JSON.
func (i *nodeInspector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || r.URL.Path != "/status" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(i.status(r.Context())) // whoever asked may have gone
}

// rangesIn are the ranges of addresses of the networks that have a store.
func rangesIn(ctx context.Context, e env, dataDir string) ([]usage, error) {
	f := ipamFlags{dataDir: dataDir, output: "table"}
	networks, err := f.networks()
	if err != nil {
		return nil, err
	}
	return f.usages(ctx, e, networks)
}

// serveStatus answers at a socket until stop is called. Pods are connected without that, so
// that a failure is no more than logged.
func (l *nodeLoop) serveStatus(socket string) (stop func()) {
	if socket == "" {
		return func() {}
	}
	stop, err := inspect.Serve(socket, &l.inspector)
	if err != nil {
		l.log.Warn("operators get no answer from this node", "flag", "--inspect-socket", "error", err)
		return func() {}
	}
	return stop
}

// printNode adds to the table of 'fairlead status'.
func (t statusTable) printNode(s nodeStatus, wide bool) {
	t.row("pods", "%s: version %s on node %s, up for %s", t.health(s.Healthy()), s.Version, s.Node, ago(t.now, s.Started))
	t.source(s.Source, s.Heard, s.Stale)
	routes := fmt.Sprintf("%d of %d to %d other nodes, routing %s", s.Programmed, s.Wanted, max(0, s.Nodes-1), s.Routing)
	if s.Tunnels > 0 {
		routes += fmt.Sprintf(", %d tunnels", s.Tunnels)
	}
	if s.MTU > 0 {
		routes += fmt.Sprintf(", MTU %d", s.MTU)
	}
	t.row("routes", "%s", routes)
	t.printPeers(s, wide)
	t.row("masquerade", "%s", s.Masquerade)
	for _, u := range s.Ranges {
		what := "network " + u.Network
		if u.Pool != "" {
			what = fmt.Sprintf("pool %s (network %s)", u.Pool, u.Network)
		}
		if u.Closed != "" {
			what += ", " + u.Closed
		}
		t.row("addresses", "%s: %s-%s: %d used, %d cooling, %s free", what, u.First, u.Last, u.Used, u.Cooling, u.Free)
	}
	for _, p := range s.Problems {
		t.bad("problem", "%s", p)
	}
}

// shownPeers is how many are printed that are not reached, unless all are wanted.
const shownPeers = 5

// printPeers prints how other nodes are reached: without wide those only that are not,
// and of which no problem says the same.
func (t statusTable) printPeers(s nodeStatus, wide bool) {
	missing := 0
	for _, p := range s.Peers {
		switch told := slices.ContainsFunc(s.Problems, func(problem cninode.Problem) bool { return problem.Text == p.Why }); {
		case p.Kind != cninode.PeerMissing && wide:
			t.row("", "%s: %s, by %s, via %s", peerName(p), p.Kind, p.Device, p.Via)
		case p.Kind == cninode.PeerMissing && (wide || !told):
			if missing++; wide || missing <= shownPeers {
				t.bad("", "%s: not reached: %s", peerName(p), p.Why)
			}
		}
	}
	if !wide && missing > shownPeers {
		t.bad("", "… and %d more (see -o wide)", missing-shownPeers)
	}
}

func peerName(p cninode.Peer) string {
	if !p.PodCIDR.IsValid() {
		return p.Node
	}
	return fmt.Sprintf("%s %s", p.Node, p.PodCIDR)
}
