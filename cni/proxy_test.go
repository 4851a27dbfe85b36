package cni_test

import (
	"testing"

	"github.com/fairlead/fairlead/proxy/iptables"
	"github.com/fairlead/fairlead/proxy/service"
)

// TestMasqueradeOutlivesTheProxy has a proxy come to a node with pods, and go.
func TestMasqueradeOutlivesTheProxy(t *testing.T) {
	node, pod := newNode(t), newPod(t, "pod")
	outside := newOutside(t, node)
	node.addT(t, pod, newNetwork(t, "10.9.0.0/24").with("isDefaultGateway", true).with("ipMasq", true).with("ipMasqBackend", "iptables"))
	before := filterState(t, node, "iptables")

	proxy := func(f func(*iptables.Backend) error) {
		t.Helper()
		err := node.ns.Do(func() error {
			backend, err := iptables.New(iptables.Config{MasqueradeMark: 0x4000})
			if err != nil {
				return err
			}
			return f(backend)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	proxy(func(b *iptables.Backend) error { return b.Sync(t.Context(), &service.Table{}, service.Change{}) })
	connect(t, pod.ns, "192.0.2.1", outside, "192.0.2.2")
	proxy(func(b *iptables.Backend) error { return b.Cleanup(t.Context()) })
	connect(t, pod.ns, "192.0.2.1", outside, "192.0.2.2")
	compare(t, "table nat", before, filterState(t, node, "iptables"))
}
