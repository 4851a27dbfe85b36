package traffic

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Stream is 1,000 numbered datagrams a second from one namespace to another, each of
// which must arrive.
type Stream struct {
	at    netip.AddrPort
	from  *net.UDPConn
	began time.Time
	stop  context.CancelFunc
	sent  chan sending // when it has ended

	mu      sync.Mutex // guards what follows
	seen    []bool     // by number
	arrived int
}

// sending is what was sent in all.
type sending struct {
	count int
	err   error
}

// NewStream begins a stream, which ends with the test.
func NewStream(t testing.TB, from, to *netns.NS, at netip.AddrPort) *Stream {
	t.Helper()
	s := &Stream{at: at, began: time.Now(), sent: make(chan sending, 1)}
	var receiver *net.UDPConn
	err := to.Do(func() (err error) {
		receiver, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = receiver.Close() })
	if err := enlarge(receiver); err != nil {
		t.Fatal(err)
	}
	err = from.Do(func() (err error) {
		s.from, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.from.Close() })
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	go s.receive(receiver)
	go s.send(ctx)
	return s
}

// enlarge gives a socket room for what comes while the machine has other work, more
// than net.core.rmem_max lets.
func enlarge(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	}); err != nil {
		return err
	}
	return failed
}

func (s *Stream) receive(conn *net.UDPConn) {
	for buf := make([]byte, 8); ; {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if n == len(buf) {
			s.note(int(binary.BigEndian.Uint64(buf)))
		}
	}
}

func (s *Stream) note(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.seen) <= number {
		s.seen = append(s.seen, false)
	}
	if !s.seen[number] {
		s.seen[number] = true
		s.arrived++
	}
}

func (s *Stream) send(ctx context.Context) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, 8)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			s.sent <- sending{count: n}
			return
		case <-tick.C:
		}
		binary.BigEndian.PutUint64(buf, uint64(n))
		if _, err := s.from.Write(buf); err != nil {
			s.sent <- sending{n, err}
			return
		}
	}
}

// AwaitMore waits for a number of datagrams.
func (s *Stream) AwaitMore(t testing.TB, count int) {
	t.Helper()
	if now := s.count(); !s.await(now + count) {
		t.Fatalf("stream to %s: it ends after %d datagrams", s.at, s.count())
	}
}

func (s *Stream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrived
}

// await waits until so many datagrams have arrived, and reports false if none has for
// some time.
func (s *Stream) await(count int) bool {
	last, since := s.count(), time.Now()
	for last < count {
		if time.Since(since) > 5*time.Second {
			return false
		}
		time.Sleep(5 * time.Millisecond)
		if now := s.count(); now != last {
			last, since = now, time.Now()
		}
	}
	return true
}

// End ends the stream, checks that all that was sent has arrived, and returns how many
// datagrams that were.
func (s *Stream) End(t testing.TB) int {
	t.Helper()
	s.stop()
	sent := <-s.sent
	if sent.err != nil {
		t.Errorf("stream to %s: send: %v", s.at, sent.err)
	}
	if !s.await(sent.count) {
		t.Errorf("stream to %s: %d of %d datagrams arrived in %s; lost: %s", s.at, s.count(), sent.count, time.Since(s.began), s.lost(sent.count))
	}
	return sent.count
}

// lost names the first numbers that are missing.
func (s *Stream) lost(sent int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	const most = 10
	var numbers []int
	for n := range sent {
		if (n >= len(s.seen) || !s.seen[n]) && len(numbers) < most {
			numbers = append(numbers, n)
		}
	}
	return fmt.Sprint(numbers)
}
