package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
)

const (
	rounds  = 3                // a backend goes and comes so many times
	absence = 3 * backends     // so many answers by others in a row: it is out
	glance  = time.Millisecond // between two looks at the answers
)

// churn takes a backend out of its Service and puts it back while connections
// are opened all the time: none of them may fail.
func (s *Scene) churn(ctx context.Context) (string, error) {
	var callers []*caller
	calls, calling := errgroup.WithContext(ctx) // calling ends with the first call that fails
	calling, stop := context.WithCancel(calling)
	for _, vip := range lab.VIPs(s.web) {
		c := &caller{pod: s.Clients[0], to: vip, last: map[string]int{}}
		callers = append(callers, c)
		calls.Go(func() error { return c.callUntil(ctx, calling.Done()) })
	}
	err := s.removeAndAdd(calling, callers)
	stop()
	if failed := calls.Wait(); failed != nil {
		return "", failed
	}
	if err != nil {
		return "", err
	}
	total := 0
	for _, c := range callers {
		total += c.calls
	}
	return fmt.Sprintf("%d times during %d connections over %s, IPv4 and IPv6: none failed",
		rounds, total, join(lab.Networks[:])), nil
}

// removeAndAdd changes the Service and waits each time until all callers
// notice.
func (s *Scene) removeAndAdd(ctx context.Context, callers []*caller) error {
	others, one := s.Web[:backends-1], s.Web[backends-1].Name
	for range rounds {
		if err := s.Lab.Apply(lab.Slices(s.web, others...)...); err != nil {
			return err
		}
		if err := wait(ctx, callers, func(c *caller) bool { return c.misses(one) }); err != nil {
			return fmt.Errorf("remove %s: %w", one, err)
		}
		if err := s.Lab.Apply(lab.Slices(s.web, s.Web...)...); err != nil {
			return err
		}
		if err := wait(ctx, callers, func(c *caller) bool { return !c.misses(one) }); err != nil {
			return fmt.Errorf("add %s: %w", one, err)
		}
	}
	return nil
}

// wait returns when something holds for every caller.
func wait(ctx context.Context, callers []*caller, holds func(*caller) bool) error {
	for _, c := range callers {
		for !holds(c) {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(glance):
			}
		}
	}
	return nil
}

// caller opens connections to one virtual IP, one after the other.
type caller struct {
	pod *lab.Pod
	to  echo.Endpoint

	mu    sync.Mutex     // guards what follows
	calls int            // that were answered
	last  map[string]int // backend → the latest call that it answered, counted from 1
}

// callUntil calls until stop, or until a call fails. A call that has begun is
// brought to its end.
func (c *caller) callUntil(ctx context.Context, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		reply, err := c.pod.Ask(ctx, c.to)
		if err != nil {
			return fmt.Errorf("connection %d to %s %s: %w", c.calls+1, c.to.Network, c.to.Addr, err)
		}
		c.note(reply.Name)
	}
}

func (c *caller) note(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	c.last[name] = c.calls
}

// misses says that only other backends have answered for a while.
func (c *caller) misses(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls-c.last[name] >= absence
}
