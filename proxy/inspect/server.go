package inspect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// Serve answers at a Unix socket until the returned function is called. The socket
// of a proxy that was killed is replaced; that of one that lives is an error.
func (i *Inspector) Serve(path string) (stop func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's directory: %w", err)
	}
	l, err := listen(path)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: i.Handler(), ReadHeaderTimeout: 5 * time.Second}
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
		return nil, fmt.Errorf("listen at %s: a proxy already answers there", path)
	case errors.Is(err, syscall.ECONNREFUSED): // its proxy was killed
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the socket of a proxy that ended: %w", err)
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
//	GET /services[?name=NAMESPACE/NAME]
//	GET /trace?from=ADDR&to=ADDR:PORT&protocol=tcp[&in=INTERFACE]
func (i *Inspector) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answer(w, i.Status()) })
	mux.HandleFunc("GET /services", func(w http.ResponseWriter, r *http.Request) {
		name := r.FormValue("name")
		answer(w, i.Services(func(n service.Name) bool { return name == "" || n.String() == name }))
	})
	mux.HandleFunc("GET /trace", func(w http.ResponseWriter, r *http.Request) {
		p, err := packet(r.FormValue("from"), r.FormValue("to"), r.FormValue("protocol"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		p.In = r.FormValue("in")
		answer(w, i.Trace(p))
	})
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

// Client asks a proxy at a Unix socket.
type Client struct {
	path string
	http *http.Client
}

// NewClient returns a Client for the socket at path.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	return &Client{path, &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: 30 * time.Second}}
}

// ErrNoProxy is that nobody answers at the socket.
var ErrNoProxy = errors.New("no 'fairlead proxy' runs there")

// Get asks a question, such as /status, and decodes the answer into v. The error
// wraps ErrNoProxy, or fs.ErrPermission.
func (c *Client) Get(ctx context.Context, question string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://proxy"+question, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("ask the proxy at %s: %w", c.path, ErrNoProxy)
	case err != nil:
		return fmt.Errorf("ask the proxy at %s: %w", c.path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask the proxy at %s: %s", c.path, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read the answer of the proxy at %s: %w", c.path, err)
	}
	return nil
}
