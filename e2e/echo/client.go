package echo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/fairlead/fairlead/e2e/ephemeral"
	"github.com/fairlead/fairlead/e2e/sctp"
)

// Ask opens a new connection, from a new port unless laddr names one, asks once
// and closes it. The zero laddr lets the routes choose the source. network is
// "tcp", "udp" or "sctp".
//
// If nobody takes the connection, the error is ECONNREFUSED for errors.Is, over
// UDP as well. Ask waits for nobody longer than ctx, whose error it then returns.
// ctx should have an end: a lost UDP request is only sent again, each second.
//
// A UDP socket that is ended before it has the reply (see Ended) counts as a lost
// request.
func Ask(ctx context.Context, network string, laddr, raddr netip.AddrPort) (Reply, error) {
	for {
		session, err := Open(ctx, network, laddr, raddr)
		if err != nil {
			return Reply{}, err
		}
		reply, err := session.Ask(ctx)
		err = errors.Join(err, session.Close())
		if network == "udp" && Ended(err) && ctx.Err() == nil {
			continue
		}
		return reply, err
	}
}

// Ended says that somebody has ended the client's socket, so that it connects anew,
// as a proxy does to UDP sockets that are connected to a backend which is gone. Who
// reads gets one error, who writes the other.
func Ended(err error) bool {
	return errors.Is(err, syscall.ECONNABORTED) || errors.Is(err, syscall.EDESTADDRREQ)
}

// Session is one connection on which many requests are asked, one at a time.
// After an error it is good for Close only.
type Session struct {
	network string
	conn    net.Conn
	lines   *bufio.Reader
}

// Open makes the connection of a Session; its arguments are those of Ask.
func Open(ctx context.Context, network string, laddr, raddr netip.AddrPort) (*Session, error) {
	conn, err := dial(ctx, network, laddr, raddr)
	if errors.Is(err, os.ErrDeadlineExceeded) { // what TCP says when ctx is about to end
		err = fmt.Errorf("dial %s %s: %w", network, raddr, context.DeadlineExceeded)
	}
	if err != nil {
		return nil, err
	}
	return &Session{network: network, conn: conn, lines: bufio.NewReaderSize(conn, maxLine)}, nil
}

// OpenUnconnected is Open over UDP with a socket that is not connected: it names the
// destination with each datagram. A reply from anywhere else is an error.
func OpenUnconnected(raddr netip.AddrPort) (*Session, error) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{Port: int(ephemeral.Port())})
	if err != nil {
		return nil, err
	}
	conn := unconnected{socket, raddr}
	return &Session{network: "udp", conn: conn, lines: bufio.NewReaderSize(conn, maxLine)}, nil
}

// unconnected is a socket that speaks with one peer all the same.
type unconnected struct {
	*net.UDPConn
	peer netip.AddrPort
}

func (u unconnected) Write(b []byte) (int, error) { return u.WriteToUDPAddrPort(b, u.peer) }

func (u unconnected) Read(b []byte) (int, error) {
	n, from, err := u.ReadFromUDPAddrPort(b)
	if got := netip.AddrPortFrom(from.Addr().Unmap(), from.Port()); err == nil && got != u.peer {
		err = fmt.Errorf("datagram from %s instead of %s", got, u.peer)
	}
	return n, err
}

func (u unconnected) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(u.peer) }

func dial(ctx context.Context, network string, laddr, raddr netip.AddrPort) (net.Conn, error) {
	switch network {
	case "tcp":
		return new(net.Dialer).DialTCP(ctx, network, laddr, raddr)
	case "udp":
		return dialUDP(ctx, laddr, raddr)
	case "sctp":
		return sctp.Dial(ctx, laddr, raddr)
	}
	return nil, fmt.Errorf("dial %s %s: %w", network, raddr, errNetwork)
}

// dialUDP takes the port from package ephemeral: see there. (TCP's ports rest in
// TIME_WAIT, and SCTP takes them there itself.)
func dialUDP(ctx context.Context, laddr, raddr netip.AddrPort) (*net.UDPConn, error) {
	if laddr.Port() != 0 {
		return new(net.Dialer).DialUDP(ctx, "udp", laddr, raddr)
	}
	from := laddr.Addr()
	if !from.IsValid() {
		from = netip.IPv6Unspecified()
		if raddr.Addr().Unmap().Is4() {
			from = netip.IPv4Unspecified()
		}
	}
	for range ephemeral.Count {
		conn, err := new(net.Dialer).DialUDP(ctx, "udp", netip.AddrPortFrom(from, ephemeral.Port()), raddr)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return conn, err
		}
	}
	return nil, fmt.Errorf("dial udp %s from a free port: %w", raddr, syscall.EADDRNOTAVAIL)
}

// Close ends the connection as its protocol wants it.
func (s *Session) Close() error { return s.conn.Close() }

// Ask sends one request and waits for its reply.
func (s *Session) Ask(ctx context.Context) (Reply, error) {
	return s.ask(ctx, resendAfter)
}

// AskOnce is Ask, but over UDP a request that is lost is not sent again.
func (s *Session) AskOnce(ctx context.Context) (Reply, error) {
	return s.ask(ctx, never)
}

func (s *Session) ask(ctx context.Context, again time.Duration) (Reply, error) {
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	reply, err := s.exchange(ctx, again)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		return Reply{}, fmt.Errorf("ask %s %s: %w", s.network, s.conn.RemoteAddr(), err)
	}
	return reply, nil
}

func (s *Session) exchange(ctx context.Context, again time.Duration) (Reply, error) {
	ask := request{ID: strconv.FormatUint(rand.Uint64(), 36)}
	if s.network == "udp" {
		return s.exchangeDatagrams(ctx, ask, again)
	}
	if err := writeLine(s.conn, ask); err != nil {
		return Reply{}, err
	}
	var reply Reply
	if err := readLine(s.lines, &reply); err != nil {
		return Reply{}, err
	}
	if reply.ID != ask.ID {
		return Reply{}, fmt.Errorf("reply to request %q instead of %q", reply.ID, ask.ID)
	}
	return reply, nil
}

// resendAfter is the initial timeout that RFC 8085 section 3.1.3 advises.
const (
	resendAfter = time.Second
	never       = time.Duration(math.MaxInt64)
)

// exchangeDatagrams sends the request again and again, since a datagram may be
// lost, until a reply with its id comes. All go from the same port: to conntrack
// they are one flow.
func (s *Session) exchangeDatagrams(ctx context.Context, ask request, again time.Duration) (Reply, error) {
	for {
		if err := writeLine(s.conn, ask); err != nil {
			return Reply{}, err
		}
		reply, err := s.awaitDatagram(ctx, ask.ID, time.Now().Add(again))
		if !errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return reply, err
		}
	}
}

func (s *Session) awaitDatagram(ctx context.Context, id string, until time.Time) (Reply, error) {
	if err := s.conn.SetReadDeadline(until); err != nil {
		return Reply{}, err
	}
	for ctx.Err() == nil { // its end may have set the deadline just before us
		var reply Reply
		if err := readLine(s.lines, &reply); err != nil {
			return Reply{}, err
		}
		if reply.ID == id { // else it is the second reply to a request sent twice
			return reply, nil
		}
	}
	return Reply{}, ctx.Err()
}
