package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/echo"
)

// Server answers over TCP and UDP at some addresses under the names of these.
type Server struct {
	poll    int
	sockets map[int32]*socket // descriptor → what it is
	events  []unix.EpollEvent
	buffer  []byte
	sctp    []*echo.Server
}

// socket is a listener, a UDP socket, or a connection.
type socket struct {
	name string
	kind kind
	sink bool // of a connection: what comes is thrown away
	peer netip.AddrPort
}

type kind int

const (
	listening kind = iota
	datagrams
	connection
)

// Listen opens sockets in the namespace of the calling thread. at is
// address → name.
func Listen(at map[netip.AddrPort]string) (*Server, error) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("listen: epoll: %w", err)
	}
	s := &Server{
		poll: poll, sockets: map[int32]*socket{},
		events: make([]unix.EpollEvent, 64), buffer: make([]byte, 256<<10),
	}
	for addr, name := range at {
		if err := s.listen(name, addr); err != nil {
			s.Close()
			return nil, fmt.Errorf("listen %s: %w", addr, err)
		}
	}
	return s, nil
}

func (s *Server) listen(name string, at netip.AddrPort) error {
	family, sa := sockaddr(at)
	for _, typ := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		what := &socket{name: name, kind: datagrams}
		if typ == unix.SOCK_STREAM {
			what.kind = listening
		}
		if err := s.add(fd, what); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, sa); err != nil {
			return err
		}
		if typ == unix.SOCK_STREAM {
			if err := unix.Listen(fd, 4096); err != nil {
				return err
			}
		}
	}
	slow, err := echo.Listen(name, echo.Endpoint{Network: "sctp", Addr: at})
	if err != nil {
		return err
	}
	s.sctp = append(s.sctp, slow)
	return nil
}

func (s *Server) add(fd int, what *socket) error {
	s.sockets[int32(fd)] = what
	return unix.EpollCtl(s.poll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// Close closes all sockets.
func (s *Server) Close() {
	for fd := range s.sockets {
		_ = unix.Close(int(fd))
	}
	_ = unix.Close(s.poll)
}

// Serve answers until ctx ends or a socket fails.
func (s *Server) Serve(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, slow := range s.sctp {
		group.Go(func() error { return slow.Serve(ctx) })
	}
	group.Go(func() error {
		if err := Calm(); err != nil {
			return err
		}
		for ctx.Err() == nil {
			if err := s.turn(); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// turn waits, a second at most, and answers what has come.
func (s *Server) turn() error {
	n, err := unix.EpollWait(s.poll, s.events, 1000)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve: epoll: %w", err)
	}
	for _, e := range s.events[:n] {
		what := s.sockets[e.Fd]
		switch what.kind {
		case listening:
			s.accept(int(e.Fd), what)
		case datagrams:
			s.datagrams(int(e.Fd), what)
		case connection:
			s.converse(int(e.Fd), what)
		}
	}
	return nil
}

// accept takes all connections that wait. An error ends the turn: what is still
// there is there at the next one.
func (s *Server) accept(fd int, l *socket) {
	for {
		conn, sa, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		_ = unix.SetsockoptInt(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if err := s.add(conn, &socket{name: l.name, kind: connection, peer: addrPort(sa)}); err != nil {
			s.drop(conn)
			continue
		}
		// As a rule the request is there already.
		s.converse(conn, s.sockets[int32(conn)])
	}
}

// drop closes a connection, which takes it out of the poll too.
func (s *Server) drop(fd int) {
	delete(s.sockets, int32(fd))
	_ = unix.Close(fd)
}

func (s *Server) converse(fd int, c *socket) {
	n, err := unix.Read(fd, s.buffer)
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
	case err != nil || n == 0:
		s.drop(fd)
	case c.sink:
	case s.buffer[0] == askSink:
		c.sink = true
	default:
		if _, err := unix.Write(fd, s.answer(c.name, c.peer, n)); err != nil {
			s.drop(fd)
		}
	}
}

func (s *Server) answer(name string, peer netip.AddrPort, n int) []byte {
	if s.buffer[0] == askWho {
		return Answer{name, peer}.line()
	}
	return s.buffer[:n]
}

// datagrams answers what has come. A reply that cannot be sent is lost like any
// datagram.
func (s *Server) datagrams(fd int, what *socket) {
	for {
		n, from, err := unix.Recvfrom(fd, s.buffer, 0)
		if err != nil {
			return
		}
		if n > 0 {
			_ = unix.Sendto(fd, s.answer(what.name, addrPort(from), n), 0, from)
		}
	}
}
