package cni_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
)

// renameMaster takes the link down for it, as kernels before 6.2 want it.
func renameMaster(t *testing.T, node *node) {
	t.Helper()
	node.ns.RunT(t, "sh", "-ec", "ip link set eth0 down; ip link set eth0 name eth1; ip link set eth1 up")
}

// TestMacvlanCheck changes one thing after ADD, and CHECK must name it.
func TestMacvlanCheck(t *testing.T) {
	tests := map[string]struct {
		drift func(t *testing.T, node *node, pod pod)
		want  string
	}{
		"nothing": {drift: func(*testing.T, *node, pod) {}},
		"the MTU, which tuning may change": {
			drift: func(t *testing.T, _ *node, pod pod) { pod.ns.RunT(t, "ip", "link", "set", "eth0", "mtu", "1300") },
		},
		"the master's name": {
			drift: func(t *testing.T, node *node, _ pod) { renameMaster(t, node) },
			want:  "master eth0 is gone",
		},
		"another master": {
			drift: func(t *testing.T, node *node, _ pod) {
				renameMaster(t, node)
				newWire(t, node)
			},
			want: "master of eth0 is not eth0",
		},
		"another mode": {
			drift: func(t *testing.T, _ *node, pod pod) {
				pod.ns.RunT(t, "ip", "link", "set", "eth0", "type", "macvlan", "mode", "vepa")
			},
			want: "mode of eth0 is vepa, not private",
		},
		"another kind": {
			drift: func(t *testing.T, _ *node, pod pod) {
				mac := strings.Fields(pod.ns.RunT(t, "ip", "-brief", "link", "show", "eth0"))[2]
				pod.ns.RunT(t, "ip", "link", "del", "eth0")
				pod.ns.RunT(t, "ip", "link", "add", "eth0", "up", "address", mac, "type", "bridge")
				pod.ns.RunT(t, "ip", "addr", "add", "10.9.0.2/24", "dev", "eth0")
			},
			want: "interface eth0 is a bridge, not a macvlan",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod"), newMacvlan(t, "10.9.0.0/24").with("macvlanMode", "private")
			newWire(t, node)
			result := node.addT(t, pod, conf)
			tt.drift(t, node, pod)
			if diff := cmp.Diff(tt.want, text(node.check(pod, conf, result))); diff != "" {
				t.Errorf("CHECK (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMacvlanDel calls DEL in states that a runtime may call it in. Nothing of
// the pod must be left, and the master be as before.
func TestMacvlanDel(t *testing.T) {
	tests := map[string]func(t *testing.T, node *node, pod pod, conf network){
		"twice": func(t *testing.T, node *node, pod pod, conf network) {
			node.delT(t, pod, conf)
			node.delT(t, pod, conf)
		},
		"after the interface went": func(t *testing.T, node *node, pod pod, conf network) {
			pod.ns.RunT(t, "ip", "link", "del", "eth0")
			node.delT(t, pod, conf)
		},
		"with a configuration that ADD refuses": func(t *testing.T, node *node, pod pod, conf network) {
			node.delT(t, pod, conf.with("mode", "unknown").with("mtu", "large"))
		},
		"after the network became a bridge": func(t *testing.T, node *node, pod pod, conf network) {
			changed := conf.with("mode", "bridge")
			delete(changed, "master")
			node.delT(t, pod, changed)
		},
	}
	for name, del := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newPod(t, "pod")
			noIPv6(t, node.ns)
			noLinkLocal(t, pod.ns)
			newWire(t, node)
			pod.ns.RunT(t, "ip", "link", "set", "lo", "up")
			host, inPod := dump(t, node.ns), dump(t, pod.ns)
			conf := onlyAddress(t).with("mode", "passthru").with("master", "eth0").with("mac", "02:aa:00:00:00:01")
			delete(conf, "isGateway")
			node.addT(t, pod, conf)
			del(t, node, pod, conf)
			compare(t, "host", host, dump(t, node.ns))
			compare(t, "pod", inPod, dump(t, pod.ns))
			node.addT(t, newPod(t, "next"), conf)
		})
	}
}

// TestMacvlanDelWithoutNamespace has the namespace, and the interface with it,
// gone before DEL.
func TestMacvlanDelWithoutNamespace(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), onlyAddress(t).with("mode", "macvlan").with("master", "eth0")
	newWire(t, node)
	node.addT(t, pod, conf)
	if err := pod.ns.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/proc/4194305/ns/net", ""} {
		pod.netns = path
		node.delT(t, pod, conf)
	}
	node.addT(t, newPod(t, "next"), conf)
}

// TestMacvlanStatus has everything there at first, and then something missing.
func TestMacvlanStatus(t *testing.T) {
	tests := map[string]struct {
		keys    string // JSON
		prepare []string
		want    string
	}{
		"ready":               {},
		"by default":          {keys: `{"master": ""}`, prepare: []string{"ip", "route", "add", "default", "dev", "eth0"}},
		"a master in the pod": {keys: `{"master": "eth7", "linkInContainer": true}`},
		"no master": {
			prepare: []string{"ip", "link", "set", "eth0", "name", "eth1"},
			want:    "master: find interface eth0: no such interface",
		},
		"no default route": {
			keys: `{"master": ""}`,
			want: "master: none is given, and there is no default route to take that of: find the default route: no such interface",
		},
		"a port": {
			prepare: []string{"sh", "-c", "ip link add br7 type bridge; ip link set eth0 master br7"},
			want:    "master: eth0 is part of the bridge br7",
		},
		"a large MTU": {keys: `{"mtu": 9000}`, want: "mtu: 9000 is above 1500, that of the master eth0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, conf := newNode(t), newMacvlan(t, "10.9.0.0/24")
			newWire(t, node)
			if tt.keys != "" {
				if err := json.Unmarshal([]byte(tt.keys), &conf); err != nil {
					t.Fatal(err)
				}
			}
			if tt.prepare != nil {
				node.ns.RunT(t, tt.prepare[0], tt.prepare[1:]...)
			}
			_, err := node.call(node, "STATUS", pod{}, marshal(conf))
			if text(err) != tt.want || err != nil && code(err) != types.ErrPluginNotAvailable {
				t.Errorf("code %d, error %v; want %q", code(err), err, tt.want)
			}
		})
	}
}

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

// TestMacvlanDelOfASecondNetwork is DEL of a network whose ADD was refused because
// the pod has the interface already, of another network.
func TestMacvlanDelOfASecondNetwork(t *testing.T) {
	tests := map[string]network{
		"bridge":  newNetwork(t).with("name", "second"),
		"macvlan": newMacvlan(t).with("name", "second"),
	}
	for name, second := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod"), newMacvlan(t, "10.9.0.0/24")
			outside := newWire(t, node, "10.9.0.1/24")
			node.addT(t, pod, conf)
			if _, err := node.add(pod, second); err == nil {
				t.Fatal("ADD succeeded")
			}
			node.delT(t, pod, second)
			connect(t, pod.ns, "10.9.0.2", outside, "10.9.0.1")
			node.delT(t, pod, conf)
			if left := linksOf(t, pod.ns, "macvlan"); len(left) != 0 {
				t.Errorf("interfaces left: %q", left)
			}
		})
	}
}
