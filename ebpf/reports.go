package ebpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Report is what became of one socket or packet.
type Report struct {
	Outcome
	Ago time.Duration // since it happened
	// Src is who asks; not valid for a socket, which has no address yet. Dst is
	// whom, and Backend who gets it, not valid if nobody does.
	Src, Dst, Backend netip.AddrPort
	Protocol          uint8
	Link              int // by which the packet came in or goes out; 0: a socket
	Process           int // of the socket
}

// Reports are read by one reader at a time: by this process, which alone has the
// data path.
type Reports struct {
	ring *ringbuf.Reader
}

// Reports opens what programs tell of their ends: of trouble always, up to 16 of a
// kind, processor and second; of all else that is not one of each packet's while
// LookOn wants it.
func (d *DataPath) Reports() (*Reports, error) {
	ring, err := ringbuf.NewReader(d.Maps.Reports)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d.Maps.Reports, err)
	}
	return &Reports{ring}, nil
}

// Close has Next return os.ErrClosed.
func (r *Reports) Close() error { return r.ring.Close() }

// Next waits for a report. The error is os.ErrClosed after Close.
func (r *Reports) Next() (Report, error) {
	record, err := r.ring.Read()
	if errors.Is(err, ringbuf.ErrClosed) {
		return Report{}, os.ErrClosed
	}
	if err != nil {
		return Report{}, fmt.Errorf("read reports: %w", err)
	}
	var row bpfReport
	if err := binary.Read(bytes.NewReader(record.RawSample), binary.NativeEndian, &row); err != nil {
		return Report{}, fmt.Errorf("decode a report of %d bytes: %w", len(record.RawSample), err)
	}
	return row.report()
}

func (row bpfReport) report() (Report, error) {
	if row.Outcome >= uint32(len(outcomes)) {
		return Report{}, fmt.Errorf("decode a report: there is no outcome %d", row.Outcome)
	}
	return Report{
		Outcome: outcomes[row.Outcome], Ago: monotonic() - time.Duration(row.At),
		Src: addrPortOf(row.Asked.Src), Dst: addrPortOf(row.Asked.Dst), Backend: addrPortOf(row.Backend),
		Protocol: uint8(row.Protocol), Link: int(row.Link), Process: int(row.Process),
	}, nil
}

// addrPortOf is not valid if the row is zeros.
func addrPortOf(row Endpoint) netip.AddrPort {
	if row.Addr == (Addr{}) && row.Port == 0 {
		return netip.AddrPort{}
	}
	var b [16]byte
	for i, w := range row.Addr.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, row.Port))
	return netip.AddrPortFrom(netip.AddrFrom16(b).Unmap(), port)
}

// tickShift is TICK_SHIFT of c/report.h.
const tickShift = 30

// LookOn has all events reported for some time from now on, or with 0 no more.
func (d *DataPath) LookOn(lasts time.Duration) error { return lookOn(d.lookedAtUntil, lasts) }

func lookOn(until *ebpf.Variable, lasts time.Duration) error {
	tick := uint32(0)
	if lasts > 0 {
		tick = uint32((monotonic()+lasts)>>tickShift) + 1
	}
	if err := until.Set(tick); err != nil {
		return fmt.Errorf("have events reported: %w", err)
	}
	return nil
}

// monotonic is the clock of programs.
func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail (clock_gettime(2))
	return time.Duration(ts.Nano())
}
