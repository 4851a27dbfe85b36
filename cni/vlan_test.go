package cni_test

import (
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
)

// needVLANs skips a test on kernels without BRIDGE_VLAN_FILTERING.
func needVLANs(t *testing.T) {
	t.Helper()
	if !hasVLANs(t) {
		t.Skip("the kernel has no BRIDGE_VLAN_FILTERING")
	}
}

func hasVLANs(t *testing.T) bool {
	_, err := netns.NewT(t).Output(t.Context(), "ip", "link", "add", "name", "br0", "type", "bridge", "vlan_filtering", "1")
	return err == nil
}

// TestVLANs compares the VLANs of the pod's port with what the reference plugin
// sets.
func TestVLANs(t *testing.T) {
	needVLANs(t)
	id := func(n int) network { return network{"id": n} }
	tests := map[string]struct {
		keys     network
		want     map[string]string // VLAN of the pod's port → its flags
		gateways int               // interfaces in the result that are a gateway's, in VLAN 100
	}{
		"vlan":               {network{"vlan": 100}, map[string]string{"100": "PVID Egress Untagged"}, 0},
		"vlan-keep-default":  {network{"vlan": 100, "preserveDefaultVlan": true}, map[string]string{"1": "Egress Untagged", "100": "PVID Egress Untagged"}, 0},
		"vlan-gateway":       {network{"vlan": 100, "isGateway": true}, map[string]string{"100": "PVID Egress Untagged"}, 1},
		"trunk":              {network{"vlanTrunk": []network{id(7), {"minID": 10, "maxID": 12}}}, map[string]string{"1": "PVID Egress Untagged", "7": "", "10": "", "11": "", "12": ""}, 0},
		"trunk-and-vlan":     {network{"vlan": 5, "vlanTrunk": []network{id(7)}}, map[string]string{"5": "PVID Egress Untagged", "7": ""}, 0},
		"trunk-has-own-vlan": {network{"vlan": 7, "vlanTrunk": []network{id(7)}}, map[string]string{"7": "PVID Egress Untagged"}, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t, "10.9.0.0/24", "fd09::/64")
			for key, value := range tt.keys {
				conf = conf.with(key, value)
			}
			out, err := node.call(node, "ADD", pod, marshal(conf))
			if err != nil {
				t.Fatal(err)
			}
			if gateways := strings.Count(string(out), `"cni0.100"`); gateways != tt.gateways {
				t.Errorf("%d interfaces cni0.100, want %d: %s", gateways, tt.gateways, out)
			}
			if diff := cmp.Diff(tt.want, vlansOf(t, node, out)); diff != "" {
				t.Errorf("VLANs (-want +got):\n%s", diff)
			}
			if _, err := node.call(node, "CHECK", pod, marshal(conf.with("prevResult", json.RawMessage(out)))); err != nil {
				t.Errorf("CHECK: %v", err)
			}
		})
	}
}

// vlansOf reads the VLANs of the port in a result.
func vlansOf(t *testing.T, node *node, out []byte) map[string]string {
	t.Helper()
	var result struct{ Interfaces []struct{ Name string } }
	if err := json.Unmarshal(out, &result); err != nil {
		t.Fatal(err)
	}
	var ports []struct {
		VLANs []struct {
			VLAN  json.Number
			Flags []string
		}
	}
	shown := node.ns.RunT(t, "bridge", "-json", "vlan", "show", "dev", result.Interfaces[1].Name)
	if err := json.Unmarshal([]byte(shown), &ports); err != nil {
		t.Fatal(err)
	}
	vlans := map[string]string{}
	for _, v := range ports[0].VLANs {
		vlans[v.VLAN.String()] = strings.Join(v.Flags, " ")
	}
	return vlans
}

// TestVLANsKeepPodsApart has pods of one bridge in two VLANs, each with its
// gateway.
func TestVLANsKeepPodsApart(t *testing.T) {
	needVLANs(t)
	node := newNode(t)
	in := func(vlan int, name, subnet string) network {
		return newNetwork(t, subnet).with("name", name).with("vlan", vlan).with("isGateway", true)
	}
	a, b := newPod(t, "a"), newPod(t, "b")
	same := in(100, "one", "10.9.0.0/24")
	resultA, resultB := node.addT(t, a, same), node.addT(t, b, same)
	addrA, addrB := resultA.IPs[0].Address.IP.String(), resultB.IPs[0].Address.IP.String()
	connect(t, a.ns, addrA, b.ns, addrB)
	connect(t, a.ns, addrA, node.ns, "10.9.0.1")

	other := newPod(t, "other")
	node.addT(t, other, in(200, "two", "10.9.0.0/24").withIPAM("ranges", [][]network{{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.200", "gateway": "10.9.0.199"}}}))
	unreachable(t, a.ns, other.ns, "10.9.0.200")
}

// TestVLANGatewayIsCompleted has an ADD find a gateway's interface that another
// one left half-done: by its death, or by somebody who made the bridge anew.
func TestVLANGatewayIsCompleted(t *testing.T) {
	needVLANs(t)
	tests := map[string][]string{ // what happened, in shell; PORT is the other end of the gateway's interface
		"the interface is down":           {"ip link set cni0.100 down"},
		"its port is in the default VLAN": {"ip link set cni0.100 down", "bridge vlan del dev PORT vid 100", "bridge vlan add dev PORT vid 1 pvid untagged"},
		"its port is of no bridge":        {"ip link set PORT nomaster"},
		"the bridge was made anew":        {"ip link del cni0"},
	}
	for name, harm := range tests {
		t.Run(name, func(t *testing.T) {
			node, conf := newNode(t), newNetwork(t, "10.9.0.0/24").with("vlan", 100).with("isGateway", true)
			node.delT(t, newPodOf(t, node, "first", conf), conf)
			port := gatewayPort(t, node)
			for _, command := range harm {
				words := strings.Fields(strings.ReplaceAll(command, "PORT", port))
				node.ns.RunT(t, words[0], words[1:]...)
			}
			pod := newPodOf(t, node, "second", conf)
			connect(t, pod.ns, "10.9.0.3", node.ns, "10.9.0.1")
		})
	}
}

// newPodOf is a pod of a network.
func newPodOf(t *testing.T, node *node, id string, conf network) pod {
	t.Helper()
	p := newPod(t, id)
	node.addT(t, p, conf)
	return p
}

// gatewayPort is the other end of cni0.100.
func gatewayPort(t *testing.T, node *node) string {
	t.Helper()
	_, peer, _ := strings.Cut(strings.Fields(node.ns.RunT(t, "ip", "-oneline", "link", "show", "cni0.100"))[1], "@")
	return strings.TrimSuffix(peer, ":")
}

// TestVLANsAreRefusedWhereThereAreNone is a kernel that does not filter VLANs:
// pods would be in no VLAN without anybody noticing.
func TestVLANsAreRefusedWhereThereAreNone(t *testing.T) {
	if hasVLANs(t) {
		t.Skip("the kernel has BRIDGE_VLAN_FILTERING")
	}
	conf := onlyAddress(t).with("vlan", 100)
	t.Run("no bridge yet", func(t *testing.T) {
		_, err := newNode(t).add(newPod(t, "pod"), conf)
		if text(err) != "add bridge cni0 with VLAN filtering: operation not supported" {
			t.Error(err)
		}
	})
	t.Run("a bridge is there", func(t *testing.T) {
		node, pod := newNode(t), newPod(t, "pod")
		noLinkLocal(t, node.ns)
		node.ns.RunT(t, "ip", "link", "add", "cni0", "up", "type", "bridge")
		host, inPod := dump(t, node.ns), dump(t, pod.ns)
		_, err := node.add(pod, conf)
		if text(err) != "set VLAN filtering of cni0: operation not supported" {
			t.Error(err)
		}
		compare(t, "host", host, dump(t, node.ns))
		compare(t, "pod", inPod, dump(t, pod.ns))
	})
}

// TestPortIsolation has pods that must reach their gateway and not each other.
func TestPortIsolation(t *testing.T) {
	node, conf := newNode(t), newNetwork(t, "10.9.0.0/24").with("isGateway", true).with("portIsolation", true)
	a, b := newPod(t, "a"), newPod(t, "b")
	addr := node.addT(t, a, conf).IPs[0].Address.IP.String()
	result := node.addT(t, b, conf)
	connect(t, a.ns, addr, node.ns, "10.9.0.1")
	unreachable(t, b.ns, a.ns, addr)
	if err := node.check(b, conf, result); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	port := result.Interfaces[1].Name
	node.ns.RunT(t, "bridge", "link", "set", "dev", port, "isolated", "off")
	if err := node.check(b, conf, result); text(err) != "isolation of port "+port+" is false, not true" {
		t.Errorf("CHECK: %v", err)
	}
	b.ns.RunT(t, "ip", "neigh", "flush", "dev", "eth0") // who did not answer is remembered
	connect(t, b.ns, result.IPs[0].Address.IP.String(), a.ns, addr)
}

// unreachable is a pod that waits for connections at an address, and gets none
// from another.
func unreachable(t *testing.T, from, to *netns.NS, addr string) {
	t.Helper()
	var server net.Listener
	err := to.Do(func() (err error) {
		server, err = net.Listen("tcp", net.JoinHostPort(addr, "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	err = from.Do(func() error {
		client, err := net.DialTimeout("tcp", server.Addr().String(), time.Second)
		if err == nil {
			_ = client.Close()
		}
		return err
	})
	if err == nil {
		t.Errorf("%s is reached", addr)
	}
}
