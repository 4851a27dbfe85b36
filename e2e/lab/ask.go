package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/netns"
)

// An ask that is not answered within askTimeout has failed. While something is
// awaited its packets may be lost without a word: then the first ask gets
// firstTimeout only, each further one twice as long, up to askTimeout, and
// between them is a pause.
const (
	askTimeout   = 5 * time.Second
	firstTimeout = 50 * time.Millisecond
	pause        = 10 * time.Millisecond
)

// site is a place in the cluster where one can stand: a node or a pod.
type site struct {
	ns *netns.NS
}

// NS is the namespace, open until the node or pod is gone or the lab closed.
func (s site) NS() *netns.NS { return s.ns }

// Output runs a command here and returns what it printed.
func (s site) Output(ctx context.Context, name string, args ...string) (string, error) {
	return s.ns.Output(ctx, name, args...)
}

// Ask opens a new connection from here to a server of package echo and asks it
// once.
func (s site) Ask(ctx context.Context, to echo.Endpoint) (echo.Reply, error) {
	return s.ask(ctx, to, askTimeout)
}

// AskUntil asks again and again until the outcome is what the caller waits for,
// or ctx ends.
func (s site) AskUntil(ctx context.Context, to echo.Endpoint, done func(echo.Reply, error) bool) error {
	for timeout := firstTimeout; ; timeout = min(2*timeout, askTimeout) {
		reply, err := s.ask(ctx, to, timeout)
		if done(reply, err) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s %s: %w (last outcome: %s)", to.Network, to.Addr, context.Cause(ctx), outcome(reply, err))
		case <-time.After(pause):
		}
	}
}

func (s site) ask(ctx context.Context, to echo.Endpoint, timeout time.Duration) (echo.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var reply echo.Reply
	err := s.ns.Do(func() (err error) {
		reply, err = echo.Ask(ctx, to.Network, netip.AddrPort{}, to.Addr)
		return err
	})
	return reply, err
}

func outcome(reply echo.Reply, err error) string {
	if err != nil {
		return err.Error()
	}
	return "answered by " + reply.Name
}

// WaitReady waits until every virtual IP and port of a Service that has
// endpoints is answered on every node.
func (l *Lab) WaitReady(ctx context.Context, service *corev1.Service) error {
	answered := func(_ echo.Reply, err error) bool { return err == nil }
	for _, n := range l.Nodes {
		for _, vip := range VIPs(service) {
			if err := n.AskUntil(ctx, vip, answered); err != nil {
				return fmt.Errorf("use service %s on %s: %w", service.Name, n.Name, err)
			}
		}
	}
	return nil
}
