package kube

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"sync"
)

// Front passes requests on to a Server, or does something else with them when it is
// told to: it is an API server that answers what it should not.
type Front struct {
	server *http.Server
	pass   *httputil.ReverseProxy

	mu     sync.Mutex // guards what follows
	behave Behaviour
	now    context.Context // ends with the behaviour
	end    context.CancelFunc
}

// Behaviour answers a request, perhaps by passing it on.
type Behaviour func(w http.ResponseWriter, r *http.Request, pass http.Handler)

// Pass only passes requests on.
func Pass(w http.ResponseWriter, r *http.Request, pass http.Handler) { pass.ServeHTTP(w, r) }

// NewFront opens a front at a port of the server's address, which shows the server's
// certificate, until Close.
func (s *Server) NewFront(port uint16) (*Front, error) {
	target, err := url.Parse(s.url(serverPort))
	if err != nil {
		return nil, err
	}
	f := &Front{pass: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: &http.Transport{
			DialContext: dialIn(s.ns), ForceAttemptHTTP2: true,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		},
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}}
	quiet := log.New(io.Discard, "", 0) // of requests that are broken off it would tell much
	f.pass.ErrorLog = quiet
	f.server = &http.Server{Handler: f, ErrorLog: quiet}
	f.Behave(Pass)
	var listener net.Listener
	err = s.ns.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(s.addr, port)))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open front: %w", err)
	}
	go func() { _ = f.server.ServeTLS(listener, s.file(certFile), s.file(certKey)) }() // until Close
	return f, nil
}

// Behave has all requests from now on answered so. Those that are being answered, watches
// too, are broken off.
func (f *Front) Behave(b Behaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end != nil {
		f.end()
	}
	f.behave = b
	f.now, f.end = context.WithCancel(context.Background())
}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	behave, now := f.behave, f.now
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(now, cancel)()
	behave(w, r.WithContext(ctx), f.pass)
}

// Close ends the front and all that goes through it.
func (f *Front) Close() {
	f.Behave(Pass)
	_ = f.server.Close()
}
