package inspect

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"time"
)

// Event is what became of a flow that began, or of a packet that did not go on.
type Event struct {
	Time    time.Time `json:"time"`
	Path    string    `json:"path"` // "socket", "packet", or "tracked" by the kernel's connection tracking
	Outcome string    `json:"outcome"`
	Text    string    `json:"text"` // the outcome for people
	Trouble bool      `json:"trouble,omitempty"`
	// From is who asks; not valid for a socket, which has no address yet.
	From     netip.AddrPort `json:"from"`
	To       netip.AddrPort `json:"to"`
	Protocol string         `json:"protocol"`
	Service  string         `json:"service,omitempty"` // whose To is: namespace/name:port
	// Backend is who gets it; not valid if nobody does.
	Backend   netip.AddrPort `json:"backend"`
	Interface string         `json:"interface,omitempty"` // by which the packet came in or goes out
	Process   int            `json:"process,omitempty"`   // of the socket
	Command   string         `json:"command,omitempty"`   // of the process
	// Lost is how many events before this one were not told: there were too many.
	Lost int `json:"lost,omitempty"`
}

// Filter picks events. Zero values pick all.
type Filter struct {
	From     netip.Addr
	To       netip.Addr
	Port     uint16
	Protocol string
	Trouble  bool // nothing else
}

// Matches says whether an event is wanted. One of a socket, which has no address, is
// from nobody.
func (f Filter) Matches(e Event) bool {
	return (!f.From.IsValid() || f.From == e.From.Addr()) &&
		(!f.To.IsValid() || f.To == e.To.Addr()) &&
		(f.Port == 0 || f.Port == e.To.Port()) &&
		(f.Protocol == "" || f.Protocol == e.Protocol) &&
		(!f.Trouble || e.Trouble)
}

// waiting is how many events wait for who is slow to read them.
const waiting = 1024

// live tells events as they happen, one JSON object each, until the client goes.
func (i *Inspector) live(w http.ResponseWriter, r *http.Request) {
	var filter Filter
	if err := json.Unmarshal([]byte(r.FormValue("filter")), &filter); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if i.Watch == nil {
		http.Error(w, "in mode "+i.Mode+" the kernel does not tell what happens", http.StatusNotImplemented)
		return
	}
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	events, ended := make(chan Event, waiting), make(chan error, 1)
	lost := 0
	go func() {
		ended <- i.Watch(ctx, func(e Event) {
			if !filter.Matches(e) {
				return
			}
			e.Lost = lost
			select {
			case events <- e:
				lost = 0
			default:
				lost++
			}
		})
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w).Flush
	for out := json.NewEncoder(w); flush() == nil; {
		select {
		case e := <-events:
			if out.Encode(e) != nil {
				return
			}
		case err := <-ended:
			if err != nil { // and not because the client went
				_ = out.Encode(Event{Time: i.Now(), Outcome: "error", Text: err.Error(), Trouble: true})
			}
			return
		}
	}
}
