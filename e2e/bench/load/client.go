package load

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/ephemeral"
)

// patience is how long a reply may take: what takes longer is lost.
const patience = 2 * time.Second

// Figures of a measurement: name → value.
type Figures map[string]float64

// The figures. Times are microseconds, medians over the measurement.
const (
	Connect   = "connect"     // from connect(2) until it returns
	Exchange  = "exchange"    // from the socket's making to the reply
	PerSecond = "per second"  // connections, exchanges or datagrams
	Bandwidth = "Gbit/s"      // of payload
	Count     = "count"       // of exchanges
	Tail      = "exchange 99" // the 99th percentile of Exchange
)

// dial connects a socket, of SOCK_STREAM or SOCK_DGRAM, to a server. Calls on it
// fail after patience.
func dial(typ int, to netip.AddrPort) (int, error) {
	family, sa := sockaddr(to)
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make socket: %w", err)
	}
	if err := prepare(fd, typ, to); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	if err := connect(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return fd, nil
}

func prepare(fd, typ int, to netip.AddrPort) error {
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	// SO_SNDTIMEO is connect's limit as well.
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			return err
		}
	}
	if typ == unix.SOCK_DGRAM {
		return bindNext(fd, to.Addr().Is4())
	}
	// Closed by a reset: a thousand connections a second would else leave no port.
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// bindNext takes a UDP port that was not used lately: see package ephemeral.
func bindNext(fd int, ipv4 bool) error {
	addr := netip.IPv6Unspecified()
	if ipv4 {
		addr = netip.IPv4Unspecified()
	}
	for {
		_, sa := sockaddr(netip.AddrPortFrom(addr, ephemeral.Port()))
		if err := unix.Bind(fd, sa); !errors.Is(err, unix.EADDRINUSE) {
			return err
		}
	}
}

func connect(fd int, sa unix.Sockaddr) error {
	for {
		err := unix.Connect(fd, sa)
		switch {
		case errors.Is(err, unix.EINTR): // called again it goes on waiting
		case errors.Is(err, unix.EISCONN):
			return nil
		case errors.Is(err, unix.EINPROGRESS):
			return fmt.Errorf("no answer within %s", patience)
		default:
			return err
		}
	}
}

// ask sends one byte and waits for the reply.
func ask(fd int, what byte, buffer []byte) (int, error) {
	buffer[0] = what
	if _, err := again(func() (int, error) { return unix.Write(fd, buffer[:1]) }); err != nil {
		return 0, fmt.Errorf("send: %w", err)
	}
	n, err := again(func() (int, error) { return unix.Read(fd, buffer) })
	switch {
	case errors.Is(err, unix.EAGAIN):
		return 0, fmt.Errorf("no answer within %s", patience)
	case err != nil:
		return 0, fmt.Errorf("receive: %w", err)
	case n == 0:
		return 0, errors.New("the server has closed the connection")
	}
	return n, nil
}

// again repeats a call that a signal has interrupted. (The runtime preempts
// goroutines by signals.)
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// Who opens n connections, one after the other, over tcp, udp or sctp, and
// returns what the servers saw.
func Who(ctx context.Context, network string, to netip.AddrPort, n int) ([]Answer, error) {
	var answers []Answer
	for range n {
		answer, err := who(ctx, network, to)
		if err != nil {
			return answers, fmt.Errorf("%s %s: connection %d of %d: %w", network, to, len(answers)+1, n, err)
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func who(ctx context.Context, network string, to netip.AddrPort) (Answer, error) {
	if network == "sctp" {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		reply, err := echo.Ask(ctx, network, netip.AddrPort{}, to)
		return Answer{reply.Name, reply.Client}, err
	}
	typ := unix.SOCK_STREAM
	if network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	fd, err := dial(typ, to)
	if err != nil {
		return Answer{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	buffer := make([]byte, 128)
	got, err := ask(fd, askWho, buffer)
	if err != nil {
		return Answer{}, err
	}
	return parseAnswer(buffer[:got])
}

// New makes new connections (or, with SOCK_DGRAM, flows) one after the other: an
// exchange on each.
func New(typ int, to netip.AddrPort, during time.Duration) (Figures, error) {
	var connects, exchanges []float64
	buffer := make([]byte, 128)
	began := time.Now()
	for time.Since(began) < during {
		started := time.Now()
		fd, err := dial(typ, to)
		if err != nil {
			return nil, err
		}
		connected := time.Now()
		_, err = ask(fd, askPing, buffer)
		exchanges = append(exchanges, microseconds(time.Since(started)))
		_ = unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("exchange with %s: %w", to, err)
		}
		connects = append(connects, microseconds(connected.Sub(started)))
	}
	figures := summary(exchanges, time.Since(began))
	figures[Connect] = quantile(connects, 0.5)
	return figures, nil
}

// Same exchanges on one connection (or, with SOCK_DGRAM, flow).
func Same(typ int, to netip.AddrPort, during time.Duration) (Figures, error) {
	fd, err := dial(typ, to)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	var exchanges []float64
	buffer := make([]byte, 128)
	began := time.Now()
	for time.Since(began) < during {
		started := time.Now()
		if _, err := ask(fd, askPing, buffer); err != nil {
			return nil, fmt.Errorf("exchange with %s: %w", to, err)
		}
		exchanges = append(exchanges, microseconds(time.Since(started)))
	}
	return summary(exchanges, time.Since(began)), nil
}

// Window keeps so many datagrams of one flow under way.
func Window(to netip.AddrPort, during time.Duration) (Figures, error) {
	const window = 32
	fd, err := dial(unix.SOCK_DGRAM, to)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	buffer := make([]byte, 128)
	datagrams := 0
	began := time.Now()
	for time.Since(began) < during {
		for range window {
			if _, err := again(func() (int, error) { return unix.Write(fd, []byte{askPing}) }); err != nil {
				return nil, fmt.Errorf("send to %s: %w", to, err)
			}
		}
		for range window {
			if _, err := again(func() (int, error) { return unix.Read(fd, buffer) }); err != nil {
				return nil, fmt.Errorf("receive from %s: a datagram was lost: %w", to, err)
			}
		}
		datagrams += 2 * window
	}
	took := time.Since(began)
	return Figures{PerSecond: float64(datagrams) / took.Seconds()}, nil
}

// Stream sends as much as goes on one TCP connection.
func Stream(to netip.AddrPort, during time.Duration) (Figures, error) {
	fd, err := dial(unix.SOCK_STREAM, to)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	buffer := make([]byte, 128<<10)
	buffer[0] = askSink
	bytes := 0
	began := time.Now()
	for time.Since(began) < during {
		n, err := again(func() (int, error) { return unix.Write(fd, buffer) })
		if err != nil {
			return nil, fmt.Errorf("send to %s: %w", to, err)
		}
		bytes += n
	}
	unsent, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ) // not yet acknowledged
	if err != nil {
		return nil, fmt.Errorf("look at the send queue: %w", err)
	}
	took := time.Since(began)
	return Figures{Bandwidth: float64(bytes-unsent) * 8 / took.Seconds() / 1e9}, nil
}

// NewSCTP makes associations, one after the other: an exchange on each.
func NewSCTP(ctx context.Context, to netip.AddrPort, during time.Duration) (Figures, error) {
	var exchanges []float64
	began := time.Now()
	for time.Since(began) < during {
		started := time.Now()
		if _, err := who(ctx, "sctp", to); err != nil {
			return nil, err
		}
		exchanges = append(exchanges, microseconds(time.Since(started)))
	}
	return summary(exchanges, time.Since(began)), nil
}

// ErrLate says that something did not happen in the time that was given to it.
var ErrLate = errors.New("not")

// Until opens connections until one is answered by the server of that name, and
// returns when that one was answered, as Clock says it.
func Until(ctx context.Context, to netip.AddrPort, server string) (time.Duration, error) {
	for ctx.Err() == nil {
		answer, err := who(ctx, "tcp", to)
		if err == nil && answer.Server == server {
			return Clock(), nil
		}
		time.Sleep(pause)
	}
	return 0, fmt.Errorf("wait until %s is answered by %s: %w", to, server, context.Cause(ctx))
}

// pause leaves the processors to what is waited for.
const pause = 200 * time.Microsecond

// Loss is what became of connections that were opened at a steady rate.
type Loss struct {
	Connections int     `json:"connections"`
	Failed      int     `json:"failed"`
	LongestMs   float64 `json:"longestMs"` // of one that did not fail
	// Broken says that the one connection that lasted all the time did not.
	Broken bool   `json:"broken"`
	First  string `json:"first,omitempty"` // why the first one failed
}

// steadily is the time between two connections of Steady.
const steadily = 5 * time.Millisecond

// Steady opens connections, at a steady rate, until ctx ends, while one goes on
// all the time.
func Steady(ctx context.Context, to netip.AddrPort) (Loss, error) {
	fd, err := dial(unix.SOCK_STREAM, to)
	if err != nil {
		return Loss{}, err
	}
	defer func() { _ = unix.Close(fd) }()
	var loss Loss
	buffer := make([]byte, 128)
	for every := time.NewTicker(steadily); ctx.Err() == nil; {
		<-every.C
		started := time.Now()
		loss.Connections++
		if _, err := who(ctx, "tcp", to); err != nil {
			loss.fail(err)
		} else {
			loss.LongestMs = max(loss.LongestMs, microseconds(time.Since(started))/1000)
		}
		if _, err := ask(fd, askPing, buffer); err != nil && !loss.Broken {
			loss.Broken = true
			loss.fail(fmt.Errorf("the lasting connection: %w", err))
		}
	}
	return loss, nil
}

func (l *Loss) fail(err error) {
	l.Failed++
	if l.First == "" {
		l.First = err.Error()
	}
}

// Clock is time that has the same zero in every process of the machine.
func Clock() time.Duration {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail
	return time.Duration(now.Nano())
}

func summary(exchanges []float64, took time.Duration) Figures {
	return Figures{
		Count:     float64(len(exchanges)),
		Exchange:  quantile(exchanges, 0.5),
		Tail:      quantile(exchanges, 0.99),
		PerSecond: float64(len(exchanges)) / took.Seconds(),
	}
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// quantile sorts the values.
func quantile(values []float64, q float64) float64 {
	slices.Sort(values)
	return values[max(int(math.Ceil(q*float64(len(values))))-1, 0)]
}
