package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Order is what a client is told to do, one line of JSON on its standard input.
type Order struct {
	What    string         `json:"what"` // see the constants
	Network string         `json:"network"`
	To      netip.AddrPort `json:"to"`
	Count   int            `json:"count,omitempty"`  // of connections
	During  time.Duration  `json:"during,omitempty"` // for how long
	Server  string         `json:"server,omitempty"` // whom to wait for
}

// What a client can be told.
const (
	OrderWho    = "who"    // Count connections
	OrderNew    = "new"    // connections During
	OrderSame   = "same"   // exchanges on one
	OrderWindow = "window" // datagrams, many under way
	OrderStream = "stream" // bytes
	OrderUntil  = "until"  // Server answers
	OrderSteady = "steady" // connections at a steady rate, until the next order, which it is not reported before
	OrderStop   = "stop"   // ends OrderSteady
	OrderUsage  = "usage"  // the processor time used so far
)

// Report is what a client answers, one line of JSON on its standard output.
type Report struct {
	Error   string        `json:"error,omitempty"`
	Late    bool          `json:"late,omitempty"` // Error is ErrLate
	Answers []Answer      `json:"answers,omitempty"`
	Figures Figures       `json:"figures,omitempty"`
	Loss    *Loss         `json:"loss,omitempty"`
	At      time.Duration `json:"at,omitempty"`    // of Clock
	Usage   time.Duration `json:"usage,omitempty"` // of Usage
}

// Obey does what it is told until in ends.
func Obey(ctx context.Context, in io.Reader, out io.Writer) error {
	orders, failed := make(chan Order), make(chan error, 1)
	go func() {
		defer close(orders)
		failed <- read(in, orders)
	}()
	if err := Calm(); err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	for order := range orders {
		var report Report
		var err error
		if order.What == OrderSteady {
			report, err = steadyUntilTold(ctx, order.To, orders)
		} else {
			report, err = order.carryOut(ctx)
		}
		if err != nil {
			report.Error, report.Late = err.Error(), errors.Is(err, ErrLate)
		}
		if err := encoder.Encode(report); err != nil {
			return err
		}
	}
	return <-failed
}

func read(in io.Reader, orders chan<- Order) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var order Order
		if err := json.Unmarshal(lines.Bytes(), &order); err != nil {
			return fmt.Errorf("read order %q: %w", lines.Bytes(), err)
		}
		orders <- order
	}
	return lines.Err()
}

func steadyUntilTold(ctx context.Context, to netip.AddrPort, orders <-chan Order) (Report, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		<-orders
		cancel()
	}()
	loss, err := Steady(ctx, to)
	return Report{Loss: &loss}, err
}

func (o Order) carryOut(ctx context.Context) (r Report, err error) {
	typ := unix.SOCK_STREAM
	if o.Network == "udp" {
		typ = unix.SOCK_DGRAM
	}
	switch o.What {
	case OrderWho:
		r.Answers, err = Who(ctx, o.Network, o.To, o.Count)
	case OrderNew:
		if o.Network == "sctp" {
			r.Figures, err = NewSCTP(ctx, o.To, o.During)
			break
		}
		r.Figures, err = New(typ, o.To, o.During)
	case OrderSame:
		r.Figures, err = Same(typ, o.To, o.During)
	case OrderWindow:
		r.Figures, err = Window(o.To, o.During)
	case OrderStream:
		r.Figures, err = Stream(o.To, o.During)
	case OrderUntil:
		ctx, cancel := context.WithTimeoutCause(ctx, o.During, fmt.Errorf("%w within %s", ErrLate, o.During))
		defer cancel()
		r.At, err = Until(ctx, o.To, o.Server)
	case OrderUsage:
		r.Usage, err = Usage()
	default:
		err = errors.New("this order is not known: " + o.What)
	}
	return r, err
}

// Usage is the processor time of this process. The kernel counts the time that a
// packet takes to the process that sends it, up to and with the receiver's
// socket: a veth pair hands it on in the sender's turn.
func Usage() (time.Duration, error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}
