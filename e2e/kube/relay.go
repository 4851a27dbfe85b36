package kube

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Relay passes TCP connections on to a Server, and cuts them when it is told to.
type Relay struct {
	Port uint16

	ns   *netns.NS
	addr netip.Addr
	to   netip.AddrPort

	mu       sync.Mutex   // guards what follows
	listener net.Listener // nil while shut
	conns    map[net.Conn]bool
}

// NewRelay opens a relay to the server at a port of the server's address.
func (s *Server) NewRelay(port uint16) (*Relay, error) {
	r := &Relay{Port: port, ns: s.ns, addr: s.addr, to: netip.AddrPortFrom(s.addr, serverPort), conns: map[net.Conn]bool{}}
	return r, r.Open()
}

// Open lets connections in, at first and after Shut.
func (r *Relay) Open() error {
	var listener net.Listener
	err := r.ns.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(r.addr, r.Port)))
		return err
	})
	if err != nil {
		return fmt.Errorf("open relay: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listener = listener
	go r.accept(listener)
	return nil
}

// Shut cuts all connections and refuses new ones until Open.
func (r *Relay) Shut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.listener.Close()
	r.listener = nil
	r.cut()
}

// Cut cuts all connections; new ones are let in.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut()
}

func (r *Relay) cut() {
	for conn := range r.conns {
		_ = conn.Close()
	}
	clear(r.conns)
}

func (r *Relay) accept(listener net.Listener) {
	for {
		near, err := listener.Accept()
		if err != nil {
			return // Shut
		}
		go r.pass(listener, near)
	}
}

func (r *Relay) pass(listener net.Listener, near net.Conn) {
	var far net.Conn
	err := r.ns.Do(func() (err error) {
		far, err = net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(r.to))
		return err
	})
	if err != nil {
		_ = near.Close()
		return
	}
	if !r.add(listener, near, far) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { pump(near, far) })
	both.Go(func() { pump(far, near) })
	both.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, near)
	delete(r.conns, far)
}

// add notes a pair of connections, unless Shut came between.
func (r *Relay) add(listener net.Listener, near, far net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != listener {
		_, _ = near.Close(), far.Close()
		return false
	}
	r.conns[near], r.conns[far] = true, true
	return true
}

// pump copies until one end closes, and then closes both.
func pump(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}
