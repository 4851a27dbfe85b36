package sctp

import (
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/pion/sctp"
)

// listener accepts associations in user space. They share its raw socket, for
// a goroutine that accepts cannot make sockets inside the namespace; the socket
// stays open until the last of them is over.
type listener struct {
	raw      *net.IPConn
	claim    *claim
	accepted chan net.Conn
	closed   chan struct{}

	mu    sync.Mutex               // guards paths and the closing of closed
	paths map[netip.AddrPort]*path // peer → its association
}

// handshakeTimeout is how long a peer may take from INIT to COOKIE ECHO.
const handshakeTimeout = 10 * time.Second

func listenUser(laddr netip.AddrPort) (net.Listener, error) {
	claim, err := onPort(laddr, claimPort)
	if err != nil {
		return nil, err
	}
	raw, err := listenRaw(claim.addr.Addr())
	if err != nil {
		claim.release()
		return nil, err
	}
	l := &listener{
		raw:      raw,
		claim:    claim,
		accepted: make(chan net.Conn),
		closed:   make(chan struct{}),
		paths:    map[netip.AddrPort]*path{},
	}
	go receive(raw, l.deliver, func() {})
	return l, nil
}

// deliver finds the association of a packet, begins a new one, or refuses.
func (l *listener) deliver(from netip.Addr, in packet) {
	if in.destination() != l.claim.addr.Port() {
		// Another socket of this namespace may hold that port, and gets its own
		// copy. If none does, every listener of the address refuses: the first
		// ABORT ends the attempt, the others find nobody.
		if !l.claim.sees(netip.AddrPortFrom(l.claim.addr.Addr(), in.destination())) {
			l.refuse(from, in)
		}
		return
	}
	remote := netip.AddrPortFrom(from, in.source())
	p := l.path(remote)
	init, isInit := in.init()
	if isInit && p != nil && !p.began(init) {
		// The peer has lost the association and begins anew from the same port.
		p.fail(syscall.ECONNRESET)
		p = nil
	}
	if isInit && p == nil {
		p = l.begin(remote, init)
	}
	if p == nil {
		l.refuse(from, in)
		return
	}
	p.deliver(in)
}

func (l *listener) refuse(to netip.Addr, in packet) {
	if out := in.outOfTheBlue(); out != nil {
		_, _ = l.raw.WriteToIP(out, ipAddr(to))
	}
}

func (l *listener) path(remote netip.AddrPort) *path {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.paths[remote]
}

// begin makes the path of a new association, or nil if the listener is closed.
func (l *listener) begin(remote netip.AddrPort, init chunk) *path {
	p := newPath(l.claim.addr, remote)
	p.setTags(0, init.initiateTag())
	to := ipAddr(remote.Addr())
	p.transmit = func(out packet) error {
		_, err := l.raw.WriteToIP(out, to)
		return err
	}
	p.release = func() { l.forget(p) }
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isClosed() {
		return nil
	}
	l.paths[remote] = p
	go l.establish(p)
	return p
}

// establish goes through the handshake and hands the association to Accept.
func (l *listener) establish(p *path) {
	guard := time.AfterFunc(handshakeTimeout, func() { p.fail(syscall.ETIMEDOUT) })
	association, err := sctp.ServerWithOptions(config(p), noInterleaving)
	guard.Stop()
	if err != nil {
		p.fail(err)
		return
	}
	c, err := newConn(association, p)
	if err != nil {
		p.abort(err)
		return
	}
	select {
	case l.accepted <- c:
	case <-l.closed:
		_ = c.Close()
	}
}

func (l *listener) forget(p *path) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paths[p.remote] == p {
		delete(l.paths, p.remote)
	}
	l.closeIdle()
}

// closeIdle gives socket and port back once nothing needs them any more.
// The caller holds mu.
func (l *listener) closeIdle() {
	if l.isClosed() && len(l.paths) == 0 {
		_ = l.raw.Close()
		l.claim.release()
	}
}

func (l *listener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "sctp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close ends accepting. Accepted associations go on.
func (l *listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.isClosed() {
		return net.ErrClosed
	}
	close(l.closed)
	l.closeIdle()
	return nil
}

func (l *listener) Addr() net.Addr { return Addr(l.claim.addr) }
