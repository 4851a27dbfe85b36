package datapath

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/e2e/bench/load"
)

// Check is what was seen of some connections on the way of a measurement, and
// whether it is right. A candidate that is wrong there has no figures of it.
type Check struct {
	Candidate   string         `json:"candidate"`
	Measure     string         `json:"measure"`
	Services    int            `json:"services"`
	Connections int            `json:"connections"`
	Spread      map[string]int `json:"spread"`            // backend → connections
	Sources     []netip.Addr   `json:"sources,omitempty"` // that the backends saw
	Wrong       string         `json:"wrong,omitempty"`   // "": it is right
}

// check opens connections, as many to each backend.
func (f flow) check(ctx context.Context, w *world) Check {
	backends := slices.Sorted(maps.Keys(backendAddr))
	each := 100
	if f.network == "sctp" {
		each = 4 // they are slow
	}
	if f.own || isDirect(w.candidate) {
		backends, each = []string{"a"}, 10
	}
	c := Check{Connections: each * len(backends), Spread: map[string]int{}}
	r, err := f.from(w).order(ctx, load.Order{
		What: load.OrderWho, Network: f.network, To: f.target(w.candidate), Count: c.Connections,
	})
	sources := map[netip.Addr]bool{}
	for _, a := range r.Answers {
		c.Spread[a.Server]++
		sources[a.Client.Addr()] = true
	}
	c.Sources = slices.SortedFunc(maps.Keys(sources), netip.Addr.Compare)
	switch {
	case err != nil:
		c.Wrong = err.Error()
	default:
		c.Wrong = f.wrong(w.candidate, c, backends, each)
	}
	return c
}

// wrong says what is, "" if all is right.
func (f flow) wrong(candidate string, c Check, backends []string, each int) string {
	// Who leads by chance is right where a fair coin would be in all but one of a
	// million runs: five standard deviations of a binomial distribution.
	allowed := 0.0
	if p := 1 / float64(len(backends)); !inTurn(candidate) {
		allowed = 5 * math.Sqrt(float64(c.Connections)*p*(1-p))
	}
	for _, b := range backends {
		if math.Abs(float64(c.Spread[b]-each)) > allowed {
			return fmt.Sprintf("of %d connections the backends got %s", c.Connections, spread(c.Spread))
		}
	}
	if isDirect(candidate) {
		return ""
	}
	for _, s := range c.Sources {
		if !slices.Contains(f.source, s) {
			return fmt.Sprintf("the backend sees %s as the client's address, and should see %s", s, join(f.source))
		}
	}
	return ""
}

func spread(connections map[string]int) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(connections)) {
		words = append(words, fmt.Sprintf("%s %d", name, connections[name]))
	}
	return strings.Join(words, ", ")
}

func join(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, " or ")
}
