package cni_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/bridge"
)

// onlyAddress is a pool of one address, so that a row that an ADD leaves behind
// makes the next one fail.
func onlyAddress(t *testing.T) network {
	return newNetwork(t).with("isGateway", true).with("ipam", network{
		"type": "fairlead-ipam", "dataDir": t.TempDir(),
		"ranges": [][]network{{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.9"}}},
	})
}

// bothFamilies is onlyAddress and an IPv6 subnet.
func bothFamilies(t *testing.T) network {
	conf := onlyAddress(t)
	ranges := conf["ipam"].(network)["ranges"].([][]network)
	return conf.withIPAM("ranges", append(ranges, []network{{"subnet": "fd09::/64"}}))
}

// TestAddLeavesNothingBehind has every step of ADD fail, on a node that has no
// bridge yet and on one that has pods on it, and compares what the kernel has
// in both namespaces, and that the address is free again.
func TestAddLeavesNothingBehind(t *testing.T) {
	nowhere := []network{{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}}
	tests := map[string]struct {
		conf     func(t *testing.T) network
		prepare  func(t *testing.T, node *node, pod *pod, conf network)
		exists   bool // the bridge has to be there for the test to make sense
		held     bool // the address is in fact held
		wantCode uint
		want     string // part of the error
	}{
		"no such namespace": {
			conf:     onlyAddress,
			prepare:  func(_ *testing.T, _ *node, pod *pod, _ network) { pod.netns = "/proc/self/no/such" },
			wantCode: types.ErrInvalidNetNS, want: "CNI_NETNS: open /proc/self/no/such: no such network namespace",
		},
		"the host's own namespace": {
			conf:     onlyAddress,
			prepare:  func(_ *testing.T, node *node, pod *pod, _ network) { pod.netns = node.ns.Path() },
			wantCode: types.ErrInvalidNetNS, want: "is the namespace of the host itself",
		},
		"the interface exists": {
			conf: onlyAddress,
			prepare: func(t *testing.T, _ *node, pod *pod, _ network) {
				pod.ns.RunT(t, "ip", "link", "add", "eth0", "type", "bridge")
			},
			wantCode: types.ErrInvalidEnvironmentVariables, want: "CNI_IFNAME: the pod has an interface eth0 already",
		},
		"the pool is exhausted": {
			conf: onlyAddress,
			prepare: func(t *testing.T, _ *node, _ *pod, conf network) {
				newNode(t).addT(t, newPod(t, "holder"), conf)
			},
			held: true, wantCode: types.ErrTryAgainLater, want: "no addresses left in 10.9.0.9-10.9.0.9",
		},
		"the bridge is none": {
			conf: func(t *testing.T) network { return onlyAddress(t).with("bridge", "other0") },
			prepare: func(t *testing.T, node *node, _ *pod, _ network) {
				node.ns.RunT(t, "ip", "link", "add", "other0", "type", "veth")
			},
			wantCode: types.ErrInternal, want: "bridge: interface other0 is a veth, not a bridge",
		},
		"the bridge has another address": {
			conf:   onlyAddress,
			exists: true,
			prepare: func(t *testing.T, node *node, _ *pod, _ network) {
				node.ns.RunT(t, "ip", "addr", "add", "10.1.1.1/24", "dev", "cni0")
			},
			wantCode: types.ErrInternal, want: "bridge cni0 has the address 10.1.1.1/24",
		},
		"the gateway cannot have its address": {
			// No IPv6 below an MTU of 1280: the IPv4 address is there by then.
			conf:     func(t *testing.T) network { return bothFamilies(t).with("mtu", 1000).with("bridge", "small0") },
			wantCode: types.ErrInternal, want: "add address fd09::1/64 to small0",
		},
		"the gateway of a bridge that is there cannot have its address": {
			conf: func(t *testing.T) network { return bothFamilies(t).with("bridge", "small0") },
			prepare: func(t *testing.T, node *node, _ *pod, _ network) {
				node.ns.RunT(t, "ip", "link", "add", "small0", "up", "mtu", "1000", "type", "bridge")
			},
			wantCode: types.ErrInternal, want: "add address fd09::1/64 to small0",
		},
		"the port is there": {
			conf: onlyAddress,
			prepare: func(t *testing.T, node *node, pod *pod, _ network) {
				node.ns.RunT(t, "ip", "link", "add", bridge.PortName(pod.id, pod.ifName), "type", "bridge")
			},
			wantCode: types.ErrInternal, want: "the host has the port of container failing, interface eth0, already",
		},
		"the pod cannot have its address": {
			conf:     func(t *testing.T) network { return bothFamilies(t).with("isGateway", false).with("mtu", 1000) },
			wantCode: types.ErrInternal, want: "add address fd09::2/64 to eth0",
		},
		"a route leads nowhere": {
			conf:     func(t *testing.T) network { return onlyAddress(t).withIPAM("routes", nowhere) },
			wantCode: types.ErrInternal, want: "add route 192.0.2.0/24 via 203.0.113.1 dev eth0: network is unreachable",
		},
		"a route leads nowhere, the bridge was down and had another address": {
			conf: func(t *testing.T) network {
				return onlyAddress(t).with("bridge", "down0").with("forceAddress", true).with("promiscMode", true).withIPAM("routes", nowhere)
			},
			prepare: func(t *testing.T, node *node, _ *pod, _ network) {
				node.ns.RunT(t, "ip", "link", "add", "down0", "up", "type", "bridge")
				node.ns.RunT(t, "ip", "link", "set", "down0", "down")
				node.ns.RunT(t, "ip", "addr", "add", "10.1.1.1/24", "dev", "down0")
				node.ns.RunT(t, "ip", "addr", "add", "10.1.2.1/24", "dev", "down0")
			},
			wantCode: types.ErrInternal, want: "add route",
		},
		"the result cannot be printed": {
			conf: onlyAddress,
			prepare: func(_ *testing.T, n *node, _ *pod, _ network) {
				n.call = func(n *node, verb string, p pod, conf []byte) ([]byte, error) {
					return nil, callVerb(n, verb, p, conf, fullPipe{})
				}
			},
			wantCode: types.ErrInternal, want: errFull.Error(),
		},
	}
	for name, tt := range tests {
		for _, place := range []string{"first pod", "among others"} {
			if tt.exists && place == "first pod" {
				continue
			}
			t.Run(name+"/"+place, func(t *testing.T) {
				node, pod, conf := newNode(t), newPod(t, "failing"), tt.conf(t)
				noLinkLocal(t, node.ns)
				noLinkLocal(t, pod.ns)
				if place == "among others" {
					node.addT(t, newPod(t, "other"), newNetwork(t))
				}
				if tt.prepare != nil {
					tt.prepare(t, node, &pod, conf)
				}
				host, inPod := dump(t, node.ns), dump(t, pod.ns)

				_, err := node.add(pod, conf)
				if err == nil || code(err) != tt.wantCode || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("code %d, error %v; want code %d, %q", code(err), err, tt.wantCode, tt.want)
				}
				compare(t, "host", host, dump(t, node.ns))
				compare(t, "pod", inPod, dump(t, pod.ns))
				if !tt.held {
					fresh := newNode(t)
					fresh.addT(t, newPod(t, "next"), onlyAddress(t).with("ipam", conf["ipam"]).withIPAM("routes", nil))
				}
			})
		}
	}
}

// fullPipe takes nothing.
type fullPipe struct{}

var errFull = errors.New("nobody reads")

func (fullPipe) Write([]byte) (int, error) { return 0, errFull }
