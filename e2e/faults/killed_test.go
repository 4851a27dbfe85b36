package faults

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/traffic"
)

// TestKilled kills a node's programs once a second, also while they start. Nobody who
// uses the Service notices, and nothing is left of those that were killed.
func TestKilled(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 2, mode)
			node := c.Nodes[0]
			c.Restart(t, node, unix.SIGTERM, mode) // one that has adopted what was there
			before := holdings(t, node)
			tr := traffic.Start(t, c.sources...)
			times := size(4, 120)
			for range times {
				if err := c.RestartAgent(node); err != nil {
					t.Fatal(err)
				}
				if err := c.RestartProxy(node, unix.SIGKILL, mode); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			c.Restart(t, node, unix.SIGKILL, mode)
			tr.GoOn(t, "")
			tr.End(t, "")
			if diff := cmp.Diff(before, holdings(t, node)); diff != "" {
				t.Errorf("of %d proxies and nodes that were killed something is left (-before +after):\n%s", times, diff)
			}
		})
	}
}
