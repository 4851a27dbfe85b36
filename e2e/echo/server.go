package echo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/sctp"
)

// Endpoint is where a server listens.
type Endpoint struct {
	Network string // "tcp", "udp" or "sctp"
	Addr    netip.AddrPort
}

// Server answers at its endpoints under one name.
type Server struct {
	name      string
	endpoints []Endpoint
	listeners []net.Listener
	datagrams []*net.UDPConn

	mu    sync.Mutex            // guards conns and done
	conns map[net.Conn]struct{} // open connections
	done  bool                  // no connection may be added any more
}

// idle is how long a connection may rest: a client that was killed says nothing.
const idle = 2 * time.Minute

// Listen opens the endpoints, each at one address (the reply names it, and a UDP
// socket at the unspecified address does not know which one was asked). Port 0
// takes a free port. Serve must follow: it closes what Listen opened.
func Listen(name string, at ...Endpoint) (*Server, error) {
	s := &Server{name: name, conns: map[net.Conn]struct{}{}}
	for _, e := range at {
		if err := s.open(e); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Server) open(e Endpoint) error {
	if !e.Addr.Addr().IsValid() || e.Addr.Addr().IsUnspecified() {
		return fmt.Errorf("listen %s %s: the address must be one of this host", e.Network, e.Addr)
	}
	var l net.Listener
	var err error
	switch e.Network {
	case "tcp":
		l, err = net.ListenTCP(e.Network, net.TCPAddrFromAddrPort(e.Addr))
	case "sctp":
		l, err = sctp.Listen(e.Addr)
	case "udp":
		return s.openDatagrams(e)
	default:
		err = fmt.Errorf("listen %s %s: %w", e.Network, e.Addr, errNetwork)
	}
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, l)
	s.endpoints = append(s.endpoints, Endpoint{e.Network, addrPort(l.Addr())})
	return nil
}

func (s *Server) openDatagrams(e Endpoint) error {
	c, err := net.ListenUDP(e.Network, net.UDPAddrFromAddrPort(e.Addr))
	if err != nil {
		return err
	}
	s.datagrams = append(s.datagrams, c)
	s.endpoints = append(s.endpoints, Endpoint{e.Network, addrPort(c.LocalAddr())})
	return nil
}

// Endpoints are those of Listen, in its order, with the ports that were taken.
func (s *Server) Endpoints() []Endpoint { return s.endpoints }

// Serve answers until ctx ends, then closes every socket and connection and
// returns nil. It returns early, with the error, if a socket fails.
func (s *Server) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		s.close()
		return nil
	})
	for _, l := range s.listeners {
		group.Go(func() error { return s.accept(l) })
	}
	for _, c := range s.datagrams {
		group.Go(func() error { return s.answerDatagrams(c) })
	}
	err := group.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// close closes all sockets, connections in parallel: an SCTP peer that is gone
// takes its time.
func (s *Server) close() {
	for _, l := range s.listeners {
		_ = l.Close()
	}
	for _, c := range s.datagrams {
		_ = c.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = true
	for c := range s.conns {
		go func() { _ = c.Close() }()
	}
}

// accept serves every connection of a listener and returns when the listener is
// closed and its connections are over.
func (s *Server) accept(l net.Listener) error {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		open.Go(func() { s.converse(c) })
	}
}

// converse answers the requests of one connection, until its client ends it,
// says something that is no request, or rests too long.
func (s *Server) converse(c net.Conn) {
	defer c.Close()
	if !s.add(c) {
		return
	}
	defer s.remove(c)
	lines := bufio.NewReaderSize(c, maxLine)
	client, server := addrPort(c.RemoteAddr()), addrPort(c.LocalAddr())
	for {
		var ask request
		_ = c.SetReadDeadline(time.Now().Add(idle))
		if err := readLine(lines, &ask); err != nil {
			return
		}
		reply := Reply{ID: ask.ID, Name: s.name, Client: client, Server: server}
		if err := writeLine(c, reply); err != nil {
			return
		}
	}
}

func (s *Server) add(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.conns[c] = struct{}{}
	}
	return !s.done
}

func (s *Server) remove(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *Server) answerDatagrams(c *net.UDPConn) error {
	buffer := make([]byte, maxLine)
	server := addrPort(c.LocalAddr())
	for {
		n, from, err := c.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return err
		}
		var ask request
		if json.Unmarshal(buffer[:n], &ask) != nil {
			continue
		}
		client := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		line, err := json.Marshal(Reply{ID: ask.ID, Name: s.name, Client: client, Server: server})
		if err != nil {
			return err
		}
		// A reply that cannot be sent is lost like any datagram.
		_, _ = c.WriteToUDPAddrPort(append(line, '\n'), from)
	}
}
