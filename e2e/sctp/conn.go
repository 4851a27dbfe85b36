package sctp

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/pion/logging"
	"github.com/pion/sctp"
)

// conn is an association in user space as a stream of bytes.
type conn struct {
	association *sctp.Association
	stream      *sctp.Stream
	path        *path

	reading sync.Mutex // guards buffer and rest
	buffer  []byte     // one message
	rest    []byte     // of buffer, not yet read

	closing  sync.Once
	closed   atomic.Bool
	closeErr error
}

const (
	// maxMessage is the longest message that is sent; a longer write becomes
	// several. It is pion's default limit, and the kernel takes no message that
	// is longer than its send buffer (212,992 bytes by default).
	maxMessage = 1 << 16

	// closeTimeout is time for SHUTDOWN to be sent three times (after 1 and 2
	// more seconds) and be answered.
	closeTimeout = 4 * time.Second
)

// config is pion's for both ends. Its packets of 1,191 bytes fit the least MTU
// that IPv6 allows, so no path MTU needs to be found.
func config(p *path) sctp.Config {
	return sctp.Config{
		NetConn:       p,
		BlockWrite:    true,
		LoggerFactory: &logging.DefaultLoggerFactory{Writer: io.Discard},
	}
}

// With interleaving I-DATA chunks would stand in the place of DATA, which
// netfilter does not know.
var noInterleaving = sctp.WithEnableInterleaving(false)

func newConn(association *sctp.Association, p *path) (*conn, error) {
	stream, err := association.OpenStream(0, sctp.PayloadTypeUnknown)
	if err != nil {
		return nil, err
	}
	close(p.opened)
	return &conn{
		association: association,
		stream:      stream,
		path:        p,
		buffer:      make([]byte, maxMessage),
	}, nil
}

// Read returns io.EOF after the peer's shutdown and ECONNRESET after its ABORT.
func (c *conn) Read(b []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.closed.Load() {
		return 0, c.failed("read", net.ErrClosed)
	}
	if len(c.rest) == 0 {
		n, err := c.stream.Read(c.buffer)
		if err != nil {
			return 0, c.failed("read", err)
		}
		c.rest = c.buffer[:n]
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// Write returns when the last message of b is on its way, not when it is
// acknowledged.
func (c *conn) Write(b []byte) (int, error) {
	n, err := writeMessages(b, c.stream.Write)
	if err != nil {
		err = c.failed("write", err)
	}
	return n, err
}

// writeMessages writes a part of the stream as messages.
func writeMessages(b []byte, write func([]byte) (int, error)) (int, error) {
	written := 0
	for message := range slices.Chunk(b, maxMessage) {
		n, err := write(message)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// failed gives an error of pion the meaning that a net.Conn would give it.
func (c *conn) failed(op string, err error) error {
	switch {
	case c.closed.Load():
		err = net.ErrClosed
	case c.path.isClosed():
		err = c.path.reason()
	}
	switch {
	case op == "read" && errors.Is(err, io.EOF):
		return io.EOF
	case errors.Is(err, io.EOF), errors.Is(err, sctp.ErrPayloadDataStateNotExist):
		err = syscall.EPIPE // the peer has shut down, or is about to
	}
	return &net.OpError{Op: op, Net: "sctp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// Close sends what is written, goes through the shutdown with the peer and frees
// everything. A peer that does not take part gets an ABORT after closeTimeout,
// and Close returns ETIMEDOUT.
func (c *conn) Close() error {
	c.closing.Do(func() { c.closeErr = c.shutdown() })
	return c.closeErr
}

func (c *conn) shutdown() error {
	c.closed.Store(true)
	_ = c.stream.SetReadDeadline(time.Time{}) // ends a goroutine of pion
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var err error
	_ = c.association.Shutdown(ctx) // fails if the peer began first: the path tells
	select {
	case <-c.path.closed:
	case <-ctx.Done():
		c.path.abort(net.ErrClosed)
		err = &net.OpError{Op: "close", Net: "sctp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: syscall.ETIMEDOUT}
	}
	_ = c.association.Close() // waits for pion's reader, which ends with the path
	return err
}

func (c *conn) LocalAddr() net.Addr                { return c.path.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr               { return c.path.RemoteAddr() }
func (c *conn) SetDeadline(t time.Time) error      { return c.stream.SetDeadline(t) }
func (c *conn) SetReadDeadline(t time.Time) error  { return c.stream.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(t time.Time) error { return c.stream.SetWriteDeadline(t) }
