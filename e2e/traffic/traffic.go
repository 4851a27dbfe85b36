// Package traffic is a steady load on Services, whose every failure counts: what a
// test of faults has going on while it breaks something.
//
// Over UDP each request is sent once: a datagram that is lost is a failure.
package traffic

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
)

// Source is somebody who asks: from a pod to virtual IPs it is by sockets, from outside
// to node ports by packets.
type Source struct {
	Name  string
	NS    *netns.NS
	To    []echo.Endpoint
	Pause time.Duration // between two requests of one client; 0: 10 ms
	// Patience is how long an answer on a new connection may take; 0: patience.
	Patience time.Duration
}

func (s Source) pause() time.Duration { return cmp.Or(s.Pause, 10*time.Millisecond) }

// Traffic is connections that last, and others that are made all the time.
type Traffic struct {
	stop  context.CancelFunc
	all   sync.WaitGroup
	began time.Time

	mu     sync.Mutex // guards what follows, which is kind of connection → …
	asked  map[string]int
	failed map[string][]string
	late   map[string]int // answers that took slow or longer
}

// patience is how long an answer may take: the machine is small, and its kernels
// retransmit. What takes as long as slow is told of.
const (
	patience = 15 * time.Second
	slow     = time.Second
)

// Start has every source ask everybody: on a connection that lasts, and on new ones,
// one after the other. It returns when all have been answered.
func Start(t testing.TB, sources ...Source) *Traffic {
	t.Helper()
	tr, ctx := begin(t)
	tr.newly(ctx, 0, sources)
	tr.lasting(ctx, t, sources)
	tr.GoOn(t)
	return tr
}

// StartNew is Start without connections that last: backends go that these would have.
// It makes so many connections a second in all, or fewer if answers do not come in time:
// End says how many there were.
func StartNew(t testing.TB, perSecond int, sources ...Source) *Traffic {
	t.Helper()
	kinds := 0
	for _, from := range sources {
		kinds += len(from.To)
	}
	tr, ctx := begin(t)
	tr.newly(ctx, time.Duration(kinds)*time.Second/time.Duration(perSecond), sources)
	tr.GoOn(t)
	return tr
}

// StartLasting is Start without new connections, where none may begin.
func StartLasting(t testing.TB, sources ...Source) *Traffic {
	t.Helper()
	tr, ctx := begin(t)
	tr.lasting(ctx, t, sources)
	tr.GoOn(t)
	return tr
}

func begin(t testing.TB) (*Traffic, context.Context) {
	ctx, stop := context.WithCancel(t.Context())
	tr := &Traffic{stop: stop, began: time.Now(), asked: map[string]int{}, failed: map[string][]string{}, late: map[string]int{}}
	t.Cleanup(func() { // of a test that ends early
		tr.stop()
		tr.all.Wait()
	})
	return tr, ctx
}

// newly has each source begin to connect to everybody, each every so often.
func (tr *Traffic) newly(ctx context.Context, every time.Duration, sources []Source) {
	for _, from := range sources {
		for _, to := range from.To {
			tr.all.Go(func() { tr.openIn(ctx, from, to, every) })
		}
	}
}

// lasting has each source ask everybody on a connection that lasts.
func (tr *Traffic) lasting(ctx context.Context, t testing.TB, sources []Source) {
	t.Helper()
	for _, from := range sources {
		for _, to := range from.To {
			session := newSession(t, from.NS, to)
			tr.all.Go(func() { tr.last(ctx, kind(from, to)+" lasting", session, from.pause()) })
		}
	}
}

func kind(from Source, to echo.Endpoint) string {
	return fmt.Sprintf("%s %s %s", to.Network, from.Name, to.Addr)
}

func newSession(t testing.TB, ns *netns.NS, to echo.Endpoint) *echo.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var session *echo.Session
	err := ns.Do(func() (err error) {
		session, err = echo.Open(ctx, to.Network, netip.AddrPort{}, to.Addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// last asks on one connection, which has one backend.
func (tr *Traffic) last(ctx context.Context, kind string, session *echo.Session, pause time.Duration) {
	defer func() { _ = session.Close() }()
	name := ""
	for ctx.Err() == nil {
		began := time.Now()
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		reply, err := session.AskOnce(asking)
		cancel()
		if name == "" {
			name = reply.Name
		}
		if err == nil && reply.Name != name {
			err = fmt.Errorf("answered by %s after %s", reply.Name, name)
		}
		tr.note(kind, time.Since(began), err)
		if err != nil {
			return
		}
		time.Sleep(pause)
	}
}

// openIn is open on one thread, which stays in the namespace (and the cgroup): to go
// there for each connection takes longer than the connection.
func (tr *Traffic) openIn(ctx context.Context, from Source, to echo.Endpoint, every time.Duration) {
	err := from.NS.Do(func() error {
		tr.open(ctx, from, to, every)
		return nil
	})
	if err != nil {
		tr.note(kind(from, to)+" new", 0, err)
	}
}

// open makes connections, one after the other: one every so often, as far as the answers
// allow, and if every is 0 one pause after the other.
func (tr *Traffic) open(ctx context.Context, from Source, to echo.Endpoint, every time.Duration) {
	kind := kind(from, to) + " new"
	next := time.Now().Add(rand.N(max(every, 1))) // not all of them at once
	for ctx.Err() == nil {
		began := time.Now()
		err := ask(context.WithoutCancel(ctx), to, cmp.Or(from.Patience, patience))
		tr.note(kind, time.Since(began), err)
		next = next.Add(every)
		if now := time.Now(); every == 0 {
			next = now.Add(from.pause())
		} else if next.Before(now) {
			next = now // what was missed is not made up for
		}
		time.Sleep(time.Until(next))
	}
}

// ask makes a connection and asks once. A UDP socket that the proxy has ended, because
// its backend is gone, is to be made anew: no datagram was lost.
func ask(ctx context.Context, to echo.Endpoint, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := askOnce(ctx, to)
		if to.Network != "udp" || !echo.Ended(err) {
			return err
		}
	}
}

func askOnce(ctx context.Context, to echo.Endpoint) error {
	session, err := echo.Open(ctx, to.Network, netip.AddrPort{}, to.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }()
	_, err = session.AskOnce(ctx)
	return err
}

func (tr *Traffic) note(kind string, took time.Duration, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.asked[kind]++
	if err != nil {
		tr.failed[kind] = append(tr.failed[kind], time.Now().Format("15:04:05.000 ")+err.Error())
	} else if took >= slow {
		tr.late[kind]++
	}
}

// GoOn waits until everybody has been answered some more times.
func (tr *Traffic) GoOn(t testing.TB) {
	t.Helper()
	count := func() map[string]int {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return maps.Clone(tr.asked)
	}
	before := count()
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(10 * time.Millisecond) {
		now, slow := count(), ""
		for kind, n := range now {
			if n < before[kind]+5 {
				slow = kind
			}
		}
		if slow == "" && len(now) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: %d answers in all, no more than %d for a while", slow, now[slow], before[slow]+5)
			return
		}
	}
}

// Count is how many times somebody was asked so far, and how many of these failed.
func (tr *Traffic) Count() (asked, failed int) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	for kind, n := range tr.asked {
		asked, failed = asked+n, failed+len(tr.failed[kind])
	}
	return asked, failed
}

// Stop stops it, whatever failed.
func (tr *Traffic) Stop() {
	tr.stop()
	tr.all.Wait()
}

// End stops it and looks at what failed.
func (tr *Traffic) End(t testing.TB) {
	t.Helper()
	tr.Stop()
	took, total := time.Since(tr.began), 0
	for _, kind := range slices.Sorted(maps.Keys(tr.asked)) {
		total += tr.asked[kind]
		if failed := tr.failed[kind]; len(failed) > 0 {
			t.Errorf("%s: %d of %d failed, the first: %s", kind, len(failed), tr.asked[kind], failed[0])
		}
		if n := tr.late[kind]; n > 0 {
			t.Logf("%s: %d of %d took %s or longer", kind, n, tr.asked[kind], slow)
		}
	}
	t.Logf("%d answers, %.0f a second", total, float64(total)/took.Seconds())
}
