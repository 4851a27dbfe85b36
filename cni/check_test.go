package cni_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// TestCheck changes one thing after ADD, and CHECK must name it.
func TestCheck(t *testing.T) {
	tests := map[string]struct {
		drift func(t *testing.T, node *node, pod *pod, conf network, port string)
		want  func(port string) string // "": no error
	}{
		"nothing": {drift: func(*testing.T, *node, *pod, network, string) {}},
		"the MTU, which tuning may change": {
			drift: inPod("ip", "link", "set", "eth0", "mtu", "1300"),
		},
		"a route in another table, as sbr moves it": {
			drift: func(t *testing.T, _ *node, pod *pod, _ network, _ string) {
				pod.ns.RunT(t, "ip", "route", "del", "default")
				pod.ns.RunT(t, "ip", "route", "add", "default", "via", "10.9.0.1", "table", "100")
			},
		},
		"the interface is gone": {
			drift: inPod("ip", "link", "del", "eth0"),
			want:  exactly("the pod has no interface eth0"),
		},
		"the interface is down": {
			drift: inPod("ip", "link", "set", "eth0", "down"),
			want: exactly("interface eth0 is down; " +
				"the pod does not have the route 0.0.0.0/0 via 10.9.0.1 dev eth0; the pod does not have the route ::/0 via fd09::1 dev eth0"),
		},
		"the hardware address": {
			drift: inPod("ip", "link", "set", "eth0", "address", "02:bb:00:00:00:01"),
			want:  exactly("hardware address of eth0 is 02:bb:00:00:00:01, not 02:aa:00:00:00:01"),
		},
		"an address more": {
			drift: inPod("ip", "addr", "add", "10.9.0.77/24", "dev", "eth0"),
		},
		"the IPv6 address is gone": {
			drift: inPod("ip", "addr", "del", "fd09::2/64", "dev", "eth0"),
			want:  exactly("interface eth0 does not have the address fd09::2/64"),
		},
		"the length of the subnet's prefix": {
			drift: func(t *testing.T, _ *node, pod *pod, _ network, _ string) {
				pod.ns.RunT(t, "ip", "addr", "add", "10.9.0.2/16", "dev", "eth0")
				pod.ns.RunT(t, "ip", "addr", "del", "10.9.0.2/24", "dev", "eth0")
				pod.ns.RunT(t, "ip", "route", "replace", "default", "via", "10.9.0.1")
			},
			want: exactly("interface eth0 does not have the address 10.9.0.2/24"),
		},
		"the default route is gone": {
			drift: inPod("ip", "route", "del", "default"),
			want:  exactly("the pod does not have the route 0.0.0.0/0 via 10.9.0.1 dev eth0"),
		},
		"the default route goes elsewhere": {
			drift: inPod("ip", "route", "replace", "default", "via", "10.9.0.99"),
			want:  exactly("the pod does not have the route 0.0.0.0/0 via 10.9.0.1 dev eth0"),
		},
		"the port is down": {
			drift: onPort("down"),
			want:  func(port string) string { return fmt.Sprintf("port %s is down", port) },
		},
		"the port left the bridge": {
			drift: onPort("nomaster"),
			want:  func(port string) string { return fmt.Sprintf("%s is not a port of bridge cni0", port) },
		},
		"the port's hardware address": {
			drift: onPort("address", "02:bb:00:00:00:02"),
			want: func(port string) string {
				return fmt.Sprintf("hardware address of %s is 02:bb:00:00:00:02, not 02:aa:00:00:00:02", port)
			},
		},
		"the port's hairpin mode": {
			drift: onPort("type", "bridge_slave", "hairpin", "off"),
			want:  func(port string) string { return fmt.Sprintf("hairpin mode of port %s is false, not true", port) },
		},
		"the port's name": {
			drift: func(t *testing.T, node *node, _ *pod, _ network, port string) {
				rename(t, node, port, "other0")
			},
			want: exactly("prevResult has no interface other0 of the host"),
		},
		"the bridge is gone": {
			drift: onHost("ip", "link", "del", "cni0"),
			want:  exactly("bridge cni0 is gone"),
		},
		"the bridge is down": {
			drift: onHost("ip", "link", "set", "cni0", "down"),
			want:  exactly("bridge cni0 is down; bridge cni0 does not have the gateway's address fd09::1"),
		},
		"the bridge's hardware address": {
			drift: onHost("ip", "link", "set", "cni0", "address", "02:bb:00:00:00:03"),
			want:  exactly("hardware address of cni0 is 02:bb:00:00:00:03, not 02:aa:00:00:00:03"),
		},
		"the bridge's addresses": {
			drift: onHost("ip", "addr", "flush", "dev", "cni0"),
			want: exactly("bridge cni0 does not have the gateway's address 10.9.0.1; " +
				"bridge cni0 does not have the gateway's address fd09::1"),
		},
		"IPAM": {
			drift: func(t *testing.T, node *node, pod *pod, conf network, _ string) {
				// On another host, so that only IPAM knows the pod.
				p := *pod
				p.netns = ""
				newNode(t).delT(t, p, conf)
			},
			want: exactly("container pod interface eth0 holds no address"),
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newPod(t, "pod")
			conf := newNetwork(t, "10.9.0.0/24", "fd09::/64").with("isDefaultGateway", true).with("hairpinMode", true).
				with("runtimeConfig", network{"mac": "02:aa:00:00:00:01"})
			result := node.addT(t, pod, conf)
			port := result.Interfaces[1]
			fixMAC(t, node, result.Interfaces[0], "02:aa:00:00:00:03")
			fixMAC(t, node, port, "02:aa:00:00:00:02")

			tt.drift(t, node, &pod, conf, port.Name)
			want := ""
			if tt.want != nil {
				want = tt.want(port.Name)
			}
			err := node.check(pod, conf, result)
			if got := text(err); got != want {
				t.Errorf("error  %q\nwant   %q", got, want)
			}
		})
	}
}

// fixMAC gives an interface of the host a hardware address that the test knows.
func fixMAC(t *testing.T, node *node, reported *types100.Interface, mac string) {
	t.Helper()
	node.ns.RunT(t, "ip", "link", "set", reported.Name, "address", mac)
	reported.Mac = mac
}

type drift = func(t *testing.T, node *node, pod *pod, conf network, port string)

func inPod(command ...string) drift {
	return func(t *testing.T, _ *node, pod *pod, _ network, _ string) { pod.ns.RunT(t, command[0], command[1:]...) }
}

func onHost(command ...string) drift {
	return func(t *testing.T, node *node, _ *pod, _ network, _ string) {
		node.ns.RunT(t, command[0], command[1:]...)
	}
}

func onPort(set ...string) drift {
	return func(t *testing.T, node *node, _ *pod, _ network, port string) {
		node.ns.RunT(t, "ip", append([]string{"link", "set", port}, set...)...)
	}
}

func exactly(text string) func(string) string { return func(string) string { return text } }

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestCheckInAChain has the result of plugins that came later: an interface of
// their own, with an address and a gateway that are not the bridge's.
func TestCheckInAChain(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t, "10.9.0.0/24").with("isGateway", true)
	result := node.addT(t, pod, conf)
	result.Interfaces = append([]*types100.Interface{{Name: "ifb0", Mac: "02:cc:00:00:00:01"}}, result.Interfaces...)
	result.IPs[0].Interface = types100.Int(3)
	result.Interfaces = append(result.Interfaces, &types100.Interface{Name: "tun0", Sandbox: pod.netns})
	result.IPs = append(result.IPs, &types100.IPConfig{
		Interface: types100.Int(4),
		Address:   net.IPNet{IP: net.IPv4(192, 0, 2, 7), Mask: net.CIDRMask(24, 32)},
		Gateway:   net.IPv4(192, 0, 2, 1),
	})
	if err := node.check(pod, conf, result); err != nil {
		t.Error(err)
	}
}

// TestCheckOfAChain has this plugin come after another, whose interface, address
// and route are in the result that it passes on.
func TestCheckOfAChain(t *testing.T) {
	node, pod := newNode(t), newPod(t, "pod")
	pod.ns.RunT(t, "ip", "link", "add", "tun0", "type", "bridge")
	pod.ns.RunT(t, "ip", "addr", "add", "192.0.2.7/24", "dev", "tun0")
	pod.ns.RunT(t, "ip", "link", "set", "tun0", "up")
	pod.ns.RunT(t, "ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
	conf := newNetwork(t, "10.9.0.0/24").with("isDefaultGateway", true)
	result := node.addT(t, pod, conf.with("prevResult", network{
		"cniVersion": "1.1.0",
		"interfaces": []network{{"name": "tun0", "sandbox": pod.netns}},
		"ips":        []network{{"address": "192.0.2.7/24", "gateway": "192.0.2.1", "interface": 0}},
		"routes":     []network{{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}},
	}))
	if err := node.check(pod, conf, result); err != nil {
		t.Error(err)
	}
	pod.ns.RunT(t, "ip", "addr", "del", "10.9.0.2/24", "dev", "eth0")
	pod.ns.RunT(t, "ip", "route", "add", "default", "via", "192.0.2.1")
	const want = "interface eth0 does not have the address 10.9.0.2/24; the pod does not have the route 0.0.0.0/0 via 10.9.0.1 dev eth0"
	if err := node.check(pod, conf, result); text(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestCheckRefuses(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t)
	result := node.addT(t, pod, conf)
	tests := map[string]struct {
		netns    string
		conf     network
		wantCode uint
		want     string
	}{
		"no prevResult": {
			pod.netns, conf, types.ErrInvalidNetworkConfig, "prevResult: CHECK needs the result of ADD, and there is none",
		},
		"a prevResult that is a number": {
			pod.netns, conf.with("prevResult", 5), types.ErrInvalidNetworkConfig, "prevResult: 5 is not allowed: it must be a result, which is an object",
		},
		"a prevResult that is none": {
			pod.netns, conf.with("prevResult", network{"cniVersion": "9.9"}), types.ErrInvalidNetworkConfig, `prevResult: decode result: unsupported CNI result version "9.9"`,
		},
		"no namespace": {
			"/proc/self/no", conf.with("prevResult", result), types.ErrInvalidNetNS, "CNI_NETNS: open /proc/self/no: no such network namespace",
		},
		"the namespace of another pod": {
			newPod(t, "other").netns, conf.with("prevResult", result), types.ErrInternal, "the pod has no interface eth0",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := pod
			p.netns = tt.netns
			_, err := node.call(node, "CHECK", p, marshal(tt.conf))
			if text(err) != tt.want || code(err) != tt.wantCode {
				t.Errorf("code %d, error %v; want %d, %s", code(err), err, tt.wantCode, tt.want)
			}
		})
	}
}
