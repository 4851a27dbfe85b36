package inspect

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// Kernel is what the kernel is asked for. What is nil is not known in the mode.
type Kernel struct {
	// Differences says in words in what way the kernel has not what the Table says, by
	// Service; what is no single Service's is under the zero Name.
	Differences func(context.Context) (map[service.Name][]string, error)
	// Connections says how many flows each Service port has got. It need not be all
	// Service ports.
	Connections func() (map[service.Origin]uint64, error)
	// Turns says how many flows a destination has led in turn, ok if it does; the next one
	// goes to the backend of that number, modulo how many there are.
	Turns func(key service.Key, class service.Class) (taken uint64, ok bool)
	// Path says how the kernel leads flows that begin with p to a frontend, as in Event.Path.
	// unsure says why a sender that would be led otherwise by its socket may have one here.
	// class is the sender's; routed: it is behind a router.
	Path func(f service.Frontend, p service.Packet, class service.Class, routed bool) (path string, unsure error)
	// Leaves says whether pods are masqueraded to an endpoint, on the packet path, because it
	// is outside the cluster.
	Leaves func(endpoint netip.Addr) bool
	// Outcomes counts how sockets and packets fared.
	Outcomes func() ([]Outcome, error)
	// Flows counts those that there are.
	Flows func() (Flows, error)
	// Watch calls see for all that happens, until the context ends. see must not wait.
	Watch func(ctx context.Context, see func(Event)) error
}

// Outcome is one way how a socket or packet fares.
type Outcome struct {
	Path    string `json:"path"` // "socket" or "packet"
	Name    string `json:"name"`
	Text    string `json:"text"`              // for people
	Trouble bool   `json:"trouble,omitempty"` // somebody gets no answer and is not told why
	Count   uint64 `json:"count"`
}

// count adds to a Status what the kernel counts.
func (k Kernel) count(s *Status) {
	note := func(what string, err error) {
		if err != nil {
			s.Problems = append(s.Problems, "count "+what+": "+err.Error())
		}
	}
	var err error
	if k.Outcomes != nil {
		s.Outcomes, err = k.Outcomes()
		note("outcomes", err)
	}
	if k.Flows != nil {
		s.Flows, err = k.Flows()
		note("flows", err)
	}
}

// A counting of connections is compared with the one before it, unless that is too
// long ago to say what goes on now; where two ask by turns, with one that is not so
// young that it says nothing.
const (
	longestPast  = 5 * time.Minute
	shortestPast = 500 * time.Millisecond
)

// counting is how many connections each Service port had got at a time.
type counting struct {
	at    time.Time
	count map[service.Origin]uint64
}

// countBusiest adds to a Status which Service ports get the connections.
func (i *Inspector) countBusiest(s *Status) {
	if i.Connections == nil {
		return
	}
	counted, err := i.Connections()
	if err != nil {
		s.Problems = append(s.Problems, "count connections: "+err.Error())
		return
	}
	now := i.Now()
	i.mu.Lock()
	defer i.mu.Unlock()
	past := i.counted[1]
	if now.Sub(past.at) < shortestPast {
		past = i.counted[0]
	} else {
		i.counted = [2]counting{past, {now, counted}}
	}
	if s.Over = now.Sub(past.at); past.count == nil || s.Over > longestPast {
		s.Over, past.count = 0, counted
	}
	s.Busiest = busiestOf(counted, past.count)
}

// busiestOf are the Service ports with the most connections that are new since past,
// and of equal ones with the most of all: none without any.
func busiestOf(counted, past map[service.Origin]uint64) []Busy {
	var all []Busy
	for o, n := range counted {
		fresh := n - past[o]
		if past[o] > n { // its rows were made anew
			fresh = n
		}
		if n > 0 {
			all = append(all, Busy{o.Service.String(), o.Port, n, fresh})
		}
	}
	slices.SortFunc(all, func(a, b Busy) int {
		return cmp.Or(cmp.Compare(b.New, a.New), cmp.Compare(b.Connections, a.Connections),
			cmp.Compare(a.Service, b.Service), cmp.Compare(a.Port, b.Port))
	})
	return all[:min(len(all), busiest)]
}

// addKernel adds to rows what the kernel has of them. Services that it alone knows
// get a row, and so does what is no single Service's.
func (k Kernel) addKernel(ctx context.Context, rows []Row, wanted func(service.Name) bool) ([]Row, error) {
	if err := k.addConnections(rows); err != nil {
		return nil, err
	}
	if k.Differences == nil {
		return rows, nil
	}
	differences, err := k.Differences(ctx)
	if err != nil {
		return nil, fmt.Errorf("compare with what the kernel has: %w", err)
	}
	for i := range rows {
		name := rows[i].origin().Service
		if lines, ok := differences[name]; ok && (i+1 == len(rows) || rows[i+1].origin().Service != name) {
			rows[i].Kernel = lines
			delete(differences, name)
		}
	}
	for name, lines := range differences {
		if name == (service.Name{}) {
			rows = append(rows, Row{Kernel: lines})
		} else if wanted(name) {
			rows = append(rows, Row{Service: name.String(), Kernel: lines})
		}
	}
	slices.SortStableFunc(rows, func(a, b Row) int { return a.origin().Service.Compare(b.origin().Service) })
	return rows, nil
}

func (k Kernel) addConnections(rows []Row) error {
	if k.Connections == nil {
		return nil
	}
	counted, err := k.Connections()
	if err != nil {
		return fmt.Errorf("count connections: %w", err)
	}
	for i := range rows {
		if n, ok := counted[rows[i].origin()]; ok {
			rows[i].Connections = &n
		}
	}
	return nil
}
