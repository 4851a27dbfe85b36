package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"
)

// serve answers HTTP at an address ("" is nowhere) until the returned function is
// called. The name of the flag is for errors.
func serve(ctx context.Context, flag, addr string, handler http.Handler) (stop func(), err error) {
	if addr == "" {
		return func() {}, nil
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return nil, usagef("%s %q: must be an address and a port, like 0.0.0.0:10256 or [::]:10256, or \"\"", flag, addr)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w (is it running already?)", flag, err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(l) }() // until stop
	return func() {
		_ = server.Close()
		_ = l.Close() // if Serve has not come to it yet
	}, nil
}
