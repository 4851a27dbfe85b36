package sctp

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// path carries the packets of one association between pion/sctp, which sees it
// as a datagram net.Conn, and a raw socket. It owns what pion leaves to its
// lower layer: real ports and addresses, verification tags, the end by ABORT.
type path struct {
	local, remote netip.AddrPort

	transmit func(packet) error // to the raw socket
	release  func()             // gives back what the path holds; called once
	ending   sync.Once
	closed   chan struct{}

	// pion refuses to open a stream once the peer has begun the shutdown, which
	// may be at once. So it sees the packets of the handshake first, and the
	// others wait until the stream is open.
	handshake chan packet
	opened    chan struct{}
	inbound   chan packet

	mu       sync.Mutex  // guards all below
	localTag uint32      // what the peer must send; from our INIT or INIT ACK
	peerTag  uint32      // what the peer wants to see
	cause    error       // why the path closed; nil after a graceful shutdown
	guard    *time.Timer // runs from the peer's SHUTDOWN to the end
}

const (
	// inboundPackets is the receive buffer of an association, in packets. It
	// holds more than pion's window of 1 MiB.
	inboundPackets = 1024

	// handshakePackets is far more than a handshake has, should all be repeated.
	handshakePackets = 32

	// shutdownGuard is the T5 timer of RFC 9260 section 9.2: so long may a peer
	// take to finish the shutdown that it began.
	shutdownGuard = 10 * time.Second

	// pionPort is the port that pion puts into every packet.
	pionPort = 5000
)

func newPath(local, remote netip.AddrPort) *path {
	return &path{
		local:     local,
		remote:    remote,
		closed:    make(chan struct{}),
		handshake: make(chan packet, handshakePackets),
		opened:    make(chan struct{}),
		inbound:   make(chan packet, inboundPackets),
	}
}

// Write sends a packet of pion. A packet that the kernel does not take (no
// route, a firewall, an ICMP error about an earlier one) is a lost packet.
func (p *path) Write(b []byte) (int, error) {
	out := append(packet(nil), b...)
	for c := range out.chunks() {
		switch c.kind() {
		case chunkInit, chunkInitAck:
			p.setTags(c.initiateTag(), out.tag())
		case chunkData:
			// pion delays its SACK by 200 ms, and a shutdown waits for the SACK
			// of the last message. RFC 7053 lets the sender ask for it at once.
			if c[1]&flagEnd != 0 {
				c[1] |= flagSackNow
			}
		default:
			p.setTags(0, out.tag())
		}
	}
	out.seal(p.local.Port(), p.remote.Port())
	if p.isClosed() {
		return 0, net.ErrClosed
	}
	_ = p.transmit(out)
	return len(b), nil
}

// setTags remembers the tags that are not zero (a first INIT has no peer's tag).
func (p *path) setTags(local, peer uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if local != 0 {
		p.localTag = local
	}
	if peer != 0 {
		p.peerTag = peer
	}
}

// Read gives pion the next packet of the peer.
func (p *path) Read(b []byte) (int, error) {
	var inbound chan packet // nil, from which nothing ever comes
	opened := p.opened
	for {
		select {
		case in := <-p.handshake:
			return give(in, b), nil
		case in := <-inbound:
			return give(in, b), nil
		case <-opened:
			inbound, opened = p.inbound, nil
		case <-p.closed:
			return 0, p.reason()
		}
	}
}

func give(in packet, b []byte) int {
	in.seal(pionPort, pionPort)
	return copy(b, in)
}

// deliver takes a packet of the peer from the raw socket. Like a full socket it
// drops what the association is too slow to take.
func (p *path) deliver(in packet) {
	if !p.belongs(in) {
		return
	}
	queue := p.inbound
	for c := range in.chunks() {
		switch c.kind() {
		case chunkAbort:
			p.fail(syscall.ECONNRESET)
			return
		case chunkInit, chunkInitAck, chunkCookieEcho, chunkCookieAck, chunkError:
			queue = p.handshake
		case chunkShutdown:
			p.startGuard()
		}
	}
	select {
	case queue <- in:
	default:
	}
}

// belongs checks the verification tag (RFC 9260 section 8.5).
func (p *path) belongs(in packet) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := p.localTag
	for c := range in.chunks() {
		switch c.kind() {
		case chunkInit:
			want = 0
		case chunkAbort, chunkShutdownComplete:
			if c.reflected() {
				want = p.peerTag
			}
		}
	}
	return in.tag() == want
}

// began says whether the association began with this INIT.
func (p *path) began(init chunk) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peerTag == init.initiateTag()
}

func (p *path) startGuard() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.guard == nil {
		p.guard = time.AfterFunc(shutdownGuard, func() { p.abort(syscall.ETIMEDOUT) })
	}
}

// abort tells the peer that the association is over, if there is one, and fails.
func (p *path) abort(cause error) {
	p.mu.Lock()
	tag := p.peerTag
	p.mu.Unlock()
	if tag != 0 {
		out := bare(chunkAbort, 0, tag)
		_, _ = p.Write(out)
	}
	p.fail(cause)
}

// Close ends the path for pion, which calls it when the shutdown is complete.
func (p *path) Close() error {
	p.fail(nil)
	return nil
}

// fail closes the path and gives its socket and port back. The first cause stays.
func (p *path) fail(cause error) {
	p.ending.Do(func() {
		p.mu.Lock()
		p.cause = cause
		if p.guard != nil {
			p.guard.Stop()
		}
		p.mu.Unlock()
		p.release()
		close(p.closed)
	})
}

func (p *path) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// reason is what a reader gets after the last byte.
func (p *path) reason() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cause != nil {
		return p.cause
	}
	return io.EOF
}

func (p *path) LocalAddr() net.Addr  { return Addr(p.local) }
func (p *path) RemoteAddr() net.Addr { return Addr(p.remote) }

// pion sets deadlines only to wake itself, on ways that are not used here: path
// is closed instead.
func (p *path) SetDeadline(time.Time) error      { return nil }
func (p *path) SetReadDeadline(time.Time) error  { return nil }
func (p *path) SetWriteDeadline(time.Time) error { return nil }
