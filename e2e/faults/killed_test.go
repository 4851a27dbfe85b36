package faults

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/traffic"
)

// killed kills a node's programs once a second, also while they start. Nobody who
// uses the Service notices, and nothing is left of those that were killed.
func (c cluster) killed(t *testing.T) {
	node := c.Nodes[0]
	c.Restart(t, node, unix.SIGTERM, c.mode) // one that has adopted what was there
	before := holdings(t, node)
	tr := traffic.Start(t, c.sources...)
	times := size(3, 120)
	for range times {
		if err := c.RestartAgent(node); err != nil {
			t.Fatal(err)
		}
		if err := c.RestartProxy(node, unix.SIGKILL, c.mode); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
	}
	c.Restart(t, node, unix.SIGKILL, c.mode)
	tr.GoOn(t)
	tr.End(t)
	if diff := cmp.Diff(before, holdings(t, node)); diff != "" {
		t.Errorf("of %d proxies and nodes that were killed something is left (-before +after):\n%s", times, diff)
	}
}
