package kube

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Relay passes TCP connections on to a Server, and cuts them or lets them hang when
// it is told to.
type Relay struct {
	Port uint16

	ns   *netns.NS
	addr netip.Addr
	to   netip.AddrPort

	mu       sync.Mutex   // guards what follows
	listener net.Listener // nil while shut
	conns    map[net.Conn]bool
	passing  chan struct{} // closed while bytes are passed on
}

// NewRelay opens a relay to the server at a port of the server's address.
func (s *Server) NewRelay(port uint16) (*Relay, error) {
	r := &Relay{Port: port, ns: s.ns, addr: s.addr, to: netip.AddrPortFrom(s.addr, serverPort), conns: map[net.Conn]bool{}, passing: make(chan struct{})}
	close(r.passing)
	return r, r.Open()
}

// Hang lets all connections in, and passes nothing on until Resume: so does a
// server that hangs look.
func (r *Relay) Hang() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passing = make(chan struct{})
}

// Resume passes on what has come since Hang, and all that comes.
func (r *Relay) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.passing)
}

// wait waits until bytes may be passed on.
func (r *Relay) wait() {
	r.mu.Lock()
	passing := r.passing
	r.mu.Unlock() // before the wait: Resume needs it
	<-passing
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
	if r.listener != nil {
		_ = r.listener.Close()
		r.listener = nil
	}
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
	both.Go(func() { pump(near, held{far, r}) })
	both.Go(func() { pump(far, held{near, r}) })
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

// held is a connection from which nothing comes while its relay hangs.
type held struct {
	net.Conn
	by *Relay
}

// Read implements net.Conn.
func (h held) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.by.wait()
	return n, err
}

// pump copies until one end closes, and then closes both.
func pump(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}
