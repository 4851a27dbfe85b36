package cni_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/refplugins"
)

// TestDel calls DEL in every state that a runtime may call it in. Nothing of the
// pod must be left, and its address be free, each time.
func TestDel(t *testing.T) {
	tests := map[string]struct {
		del func(t *testing.T, node *node, pod pod, conf network)
	}{
		"once": {func(t *testing.T, node *node, pod pod, conf network) { node.delT(t, pod, conf) }},
		"twice": {func(t *testing.T, node *node, pod pod, conf network) {
			node.delT(t, pod, conf)
			node.delT(t, pod, conf)
		}},
		"without a namespace": {func(t *testing.T, node *node, pod pod, conf network) {
			pod.netns = ""
			node.delT(t, pod, conf)
		}},
		"with a namespace that is gone": {func(t *testing.T, node *node, pod pod, conf network) {
			pod.netns = "/proc/4194305/ns/net"
			node.delT(t, pod, conf)
		}},
		"with a file that was a namespace": {func(t *testing.T, node *node, pod pod, conf network) {
			pod.netns = filepath.Join(t.TempDir(), "netns")
			if err := os.WriteFile(pod.netns, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			node.delT(t, pod, conf)
		}},
		"after the interface went": {func(t *testing.T, node *node, pod pod, conf network) {
			pod.ns.RunT(t, "ip", "link", "del", "eth0")
			node.delT(t, pod, conf)
		}},
		"after the bridge went": {func(t *testing.T, node *node, pod pod, conf network) {
			node.ns.RunT(t, "ip", "link", "del", "cni0")
			node.delT(t, pod, conf)
		}},
		"after the host's end got another name": {func(t *testing.T, node *node, pod pod, conf network) {
			rename(t, node, portOf(t, node), "other0")
			node.delT(t, pod, conf)
		}},
		"with a configuration that ADD refuses": {func(t *testing.T, node *node, pod pod, conf network) {
			node.delT(t, pod, conf.with("mode", "unknown").with("mtu", "large").with("vlan", 7))
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod"), onlyAddress(t).with("isGateway", false)
			noLinkLocal(t, node.ns)
			noLinkLocal(t, pod.ns)
			pod.ns.RunT(t, "ip", "link", "set", "lo", "up")
			before := newPod(t, "before")
			node.addT(t, before, conf)
			node.delT(t, before, conf)
			host, inPod := dump(t, node.ns), dump(t, pod.ns)
			node.addT(t, pod, conf)
			tt.del(t, node, pod, conf)
			if name != "after the bridge went" {
				compare(t, "host", host, dump(t, node.ns))
			}
			compare(t, "pod", inPod, dump(t, pod.ns))
			node.addT(t, newPod(t, "next"), conf)
		})
	}
}

// rename has a port be down meanwhile, as kernels before 6.3 want it.
func rename(t *testing.T, node *node, port, name string) {
	t.Helper()
	node.ns.RunT(t, "ip", "link", "set", port, "down")
	node.ns.RunT(t, "ip", "link", "set", port, "name", name)
	node.ns.RunT(t, "ip", "link", "set", name, "up")
}

func portOf(t *testing.T, node *node) string {
	t.Helper()
	ports := linksOf(t, node.ns, "veth")
	if len(ports) != 1 {
		t.Fatalf("ports: %q, want one", ports)
	}
	return ports[0]
}

// TestDelOfWhatNeverWas is DEL after an ADD that did not come to anything, or
// after a reboot that took everything along.
func TestDelOfWhatNeverWas(t *testing.T) {
	tests := map[string]network{
		"without IPAM":           newNetwork(t),
		"with IPAM":              newNetwork(t, "10.9.0.0/24"),
		"IPAM without a type":    newNetwork(t).with("ipam", network{"subnet": "10.9.0.0/24"}),
		"IPAM of the wrong type": newNetwork(t).with("ipam", "fairlead-ipam"),
	}
	for name, conf := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newPod(t, "pod")
			before := dump(t, pod.ns)
			node.delT(t, pod, conf)
			compare(t, "pod", before, dump(t, pod.ns))
		})
	}
}

// TestDelLeavesOthersAlone gives DEL namespaces whose eth0 is not a pod's.
func TestDelLeavesOthersAlone(t *testing.T) {
	conf := newNetwork(t)
	t.Run("the host's own namespace", func(t *testing.T) {
		node := newNode(t)
		node.ns.RunT(t, "ip", "link", "add", "eth0", "type", "veth")
		node.delT(t, pod{id: "pod", netns: node.ns.Path(), ifName: "eth0"}, conf)
		node.ns.RunT(t, "ip", "link", "show", "eth0")
	})
	t.Run("an interface of another kind", func(t *testing.T) {
		node, pod := newNode(t), newPod(t, "pod")
		pod.ns.RunT(t, "ip", "link", "add", "eth0", "type", "bridge")
		node.delT(t, pod, conf)
		pod.ns.RunT(t, "ip", "link", "show", "eth0")
	})
	t.Run("other pods", func(t *testing.T) {
		node, a, b := newNode(t), newPod(t, "a"), newPod(t, "b")
		node.addT(t, a, conf)
		result := node.addT(t, b, conf)
		node.delT(t, a, conf)
		if err := node.check(b, conf, result); err != nil {
			t.Error(err)
		}
	})
}

// TestDelOfASecondNetwork is DEL of a network whose ADD was refused because the
// pod has the interface already, of another network.
func TestDelOfASecondNetwork(t *testing.T) {
	second := newNetwork(t).with("name", "second")
	tests := map[string]struct {
		conf    network
		renamed bool // the host's end
	}{
		"bridge":                {second, false},
		"bridge, source check":  {second.with("macspoofchk", true), false},
		"macvlan":               {second.with("mode", "macvlan"), false},
		"a port that was named": {second, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t, "10.9.0.0/24").with("isGateway", true)
			node.addT(t, pod, conf)
			if tt.renamed {
				rename(t, node, portOf(t, node), "other0")
			}
			if _, err := node.add(pod, tt.conf); err == nil {
				t.Fatal("ADD succeeded")
			}
			node.delT(t, pod, tt.conf)
			connect(t, pod.ns, "10.9.0.2", node.ns, "10.9.0.1")
		})
	}
}

// TestDelOfTheReferencePluginsPod is a node whose configuration was changed from
// the reference plugin to this one while it had pods.
func TestDelOfTheReferencePluginsPod(t *testing.T) {
	reference, pod := newNode(t), newPod(t, "pod")
	reference.call = byExec(filepath.Join(refplugins.Dir(t), "bridge"))
	conf := newNetwork(t, "10.9.0.0/24").with("isGateway", true).with("ipMasq", true).withIPAM("type", "host-local")
	result := reference.addT(t, pod, conf)
	other := newPod(t, "other")
	reference.addT(t, other, conf)

	ours := &node{ns: reference.ns, path: reference.path, call: inProcess}
	if err := ours.check(pod, conf, result); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	ours.delT(t, pod, conf)
	rules := ours.ns.RunT(t, "iptables", "-t", "nat", "-S")
	if strings.Contains(rules, "10.9.0.2/32") || strings.Count(rules, "-N CNI-") != 1 {
		t.Errorf("of the rules of two pods are left:\n%s", rules)
	}
	ours.delT(t, other, conf)
	if ports := linksOf(t, ours.ns, "veth"); len(ports) != 0 {
		t.Errorf("ports left: %q", ports)
	}
	if held := leases(t, conf); len(held) != 0 {
		t.Errorf("host-local still holds %q", held)
	}
}

// leases are the addresses that host-local holds for a network.
func leases(t *testing.T, conf network) []string {
	t.Helper()
	held, err := filepath.Glob(filepath.Join(conf["ipam"].(network)["dataDir"].(string), "net", "[0-9]*.[0-9]*"))
	if err != nil {
		t.Fatal(err)
	}
	return held
}
