package cni_test

import (
	"strings"
	"testing"
)

// TestDuplicateAddress has the host hold the address that IPAM gives.
func TestDuplicateAddress(t *testing.T) {
	const want = "address fd09::2/64 of eth0: another host on the link has it"
	for name, detected := range map[string]bool{"enabledad": true, "not looked for": false} {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newPod(t, "pod")
			conf := newNetwork(t, "fd09::/64").with("enabledad", detected)
			node.ns.RunT(t, "ip", "link", "add", "cni0", "up", "type", "bridge")
			node.ns.RunT(t, "ip", "addr", "add", "fd09::2/64", "dev", "cni0", "nodad")
			noLinkLocal(t, pod.ns)
			inPod := dump(t, pod.ns)
			_, err := node.add(pod, conf)
			if !detected {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if text(err) != want {
				t.Errorf("error %v, want %s", err, want)
			}
			compare(t, "pod", inPod, dump(t, pod.ns))
		})
	}
}

// TestUniqueAddress looks at an address that nobody else has.
func TestUniqueAddress(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t, "fd09::/64").with("isGateway", true).with("enabledad", true)
	node.addT(t, pod, conf)
	if shown := pod.ns.RunT(t, "ip", "addr", "show", "eth0"); strings.Contains(shown, "tentative") {
		t.Errorf("addresses are not usable yet:\n%s", shown)
	}
	for _, name := range []string{"accept_dad", "enhanced_dad"} {
		if value := read(t, pod.ns, "net/ipv6/conf/eth0/"+name); value != "1" {
			t.Errorf("%s is %s", name, value)
		}
	}
	connect(t, pod.ns, "fd09::2", node.ns, "fd09::1")
}

// TestInterfaceStaysDown is disableContainerInterface: a chain's next plugin, or
// the pod itself, sets the interface up when it likes.
func TestInterfaceStaysDown(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t).with("disableContainerInterface", true)
	result := node.addT(t, pod, conf)
	if shown := pod.ns.RunT(t, "ip", "link", "show", "eth0"); strings.Contains(shown, ",UP") {
		t.Errorf("the interface is up:\n%s", shown)
	}
	if err := node.check(pod, conf, result); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	pod.ns.RunT(t, "ip", "link", "set", "eth0", "up")
	if err := node.check(pod, conf, result); err != nil {
		t.Errorf("CHECK when it is up: %v", err)
	}
}
