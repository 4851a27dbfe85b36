package cni_test

import "testing"

// TestMacvlanGC has pods that the runtime does not know in namespaces that are
// still there. Their interfaces must go before their addresses are given to
// others, and nobody else's.
func TestMacvlanGC(t *testing.T) {
	tests := map[string]struct {
		change func(t *testing.T, pod pod)
		want   int // macvlans left in the namespace
	}{
		"as it was":             {func(*testing.T, pod) {}, 0},
		"without its interface": {func(t *testing.T, pod pod) { pod.ns.RunT(t, "ip", "link", "del", "eth0") }, 0},
		"the namespace has become that of another pod": {func(t *testing.T, pod pod) {
			pod.ns.RunT(t, "ip", "addr", "flush", "dev", "eth0")
			pod.ns.RunT(t, "ip", "addr", "add", "10.9.0.77/24", "dev", "eth0")
		}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, kept, lost, conf := newNode(t), newPod(t, "kept"), newPod(t, "lost"), newMacvlan(t, "10.9.0.0/24")
			newWire(t, node)
			result := node.addT(t, kept, conf)
			node.addT(t, lost, conf)
			tt.change(t, lost)
			if err := node.gc(conf, kept); err != nil {
				t.Fatal(err)
			}
			if links := linksOf(t, lost.ns, "macvlan"); len(links) != tt.want {
				t.Errorf("left in the namespace: %q, want %d", links, tt.want)
			}
			if err := node.check(kept, conf, result); err != nil {
				t.Errorf("the pod to keep: %v", err)
			}
		})
	}
}
