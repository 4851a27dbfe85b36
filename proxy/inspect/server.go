package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// Serve answers at a Unix socket until the returned function is called. The socket
// of a process that was killed is replaced; that of one that lives is an error.
func Serve(path string, handler http.Handler) (stop func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(l) }() // until stop
	return func() {
		_ = server.Close()
		_ = l.Close() // if Serve has not come to it yet
	}, nil
}

// listen makes a socket that only its owner may use.
func listen(path string) (net.Listener, error) {
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		_ = conn.Close()
		return nil, fmt.Errorf("listen at %s: somebody already answers there", path)
	case errors.Is(err, syscall.ECONNREFUSED): // its process was killed
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket of a process that ended: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("keep %s to root: %w", path, err)
	}
	return l, nil
}

// Handler answers the questions, in JSON.
//
//	GET /status
//	GET /services[?name=NAMESPACE/NAME|namespace=NAMESPACE][&kernel=no]
//	GET /trace?from=ADDR&to=ADDR:PORT&protocol=tcp[&in=INTERFACE][&routed=yes]
//	GET /live?filter=FILTER
func (i *Inspector) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, i.Status()) })
	mux.HandleFunc("GET /services", func(w http.ResponseWriter, r *http.Request) {
		name, namespace := r.FormValue("name"), r.FormValue("namespace")
		wanted := func(n service.Name) bool {
			return (name == "" || n.String() == name) && (namespace == "" || n.Namespace == namespace)
		}
		if r.FormValue("kernel") == "no" {
			answer(w, i.Told(wanted))
			return
		}
		rows, err := i.Services(r.Context(), wanted)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer(w, rows)
	})
	mux.HandleFunc("GET /trace", func(w http.ResponseWriter, r *http.Request) {
		p, err := packet(r.FormValue("from"), r.FormValue("to"), r.FormValue("protocol"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.In = r.FormValue("in")
		answer(w, i.Trace(r.Context(), p, r.FormValue("routed") == "yes"))
	})
	mux.HandleFunc("GET /live", i.live)
	return mux
}

func packet(from, to, protocol string) (p service.Packet, err error) {
	if p.Src, err = netip.ParseAddr(from); err != nil {
		return p, err
	}
	if p.Dst, err = netip.ParseAddrPort(to); err != nil {
		return p, err
	}
	return p, p.Protocol.UnmarshalText([]byte(protocol))
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // whoever asked may have gone
}

// Client asks a program at a Unix socket.
type Client struct {
	program string
	path    string
	http    *http.Client
}

// NewClient returns a Client for the socket at path, of a program as people call it.
func NewClient(program, path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{program, path, &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// ErrNobody is that nobody answers at the socket. The error then wraps fs.ErrNotExist
// if nobody ever did, or whoever did has ended in order.
var ErrNobody = errors.New("it does not run there")

// nobodyError is ErrNobody and its cause, of which no more is said.
type nobodyError struct{ cause error }

func (nobodyError) Error() string     { return ErrNobody.Error() }
func (e nobodyError) Unwrap() []error { return []error{ErrNobody, e.cause} }

// patience is how long an answer may take. To compare thousands of Services with what
// iptables says takes a while.
const patience = time.Minute

// Get asks a question, such as /status, and decodes the answer into v. The error
// wraps ErrNobody, or fs.ErrPermission.
func (c *Client) Get(ctx context.Context, question string, v any) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	body, err := c.ask(ctx, question)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return fmt.Errorf("read the answer of %s at %s: %w", c.program, c.path, err)
	}
	return nil
}

// Live calls see for every event that a filter picks, until ctx ends, which is no
// error, or the proxy does.
func (c *Client) Live(ctx context.Context, f Filter, see func(Event) error) error {
	filter, err := json.Marshal(f)
	if err != nil {
		return err
	}
	body, err := c.ask(ctx, "/live?"+url.Values{"filter": {string(filter)}}.Encode())
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	for events := json.NewDecoder(body); ; {
		var e Event
		err := events.Decode(&e)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%s at %s has ended", c.program, c.path)
		case err != nil:
			return fmt.Errorf("read the answer of %s at %s: %w", c.program, c.path, err)
		}
		if err := see(e); err != nil {
			return err
		}
	}
}

// ask is the answer to a question, to be closed.
func (c *Client) ask(ctx context.Context, question string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy"+question, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("ask %s at %s: %w", c.program, c.path, nobodyError{err})
	case err != nil:
		return nil, fmt.Errorf("ask %s at %s: %w", c.program, c.path, cause(err))
	case resp.StatusCode == http.StatusOK:
		return resp.Body, nil
	}
	why, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // or as much as came
	_ = resp.Body.Close()
	return nil, fmt.Errorf("ask %s at %s: %s: %s", c.program, c.path, resp.Status, strings.TrimSpace(string(why)))
}

// cause is what the kernel said, if it did, without who passed it on.
func cause(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	return err
}
