package cni_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/e2e/netns"
)

// newWire gives a node an interface eth0, which has the name of the pods'
// interfaces as on most nodes, and returns the namespace at its other end: the
// network outside, in which wire0 has the given addresses.
func newWire(t *testing.T, node *node, addrs ...string) *netns.NS {
	t.Helper()
	outside := netns.NewT(t)
	node.ns.RunT(t, "ip", "link", "add", "eth0", "up", "address", "02:aa:00:00:00:0f", "type", "veth", "peer", "name", "wire0", "netns", outside.Path())
	outside.RunT(t, "ip", "link", "set", "wire0", "up")
	for _, addr := range addrs {
		outside.RunT(t, "ip", "addr", "add", addr, "dev", "wire0", "nodad")
	}
	return outside
}

// noIPv6 has interfaces that are made later without IPv6, whose routes come a
// while after the carrier does.
func noIPv6(t *testing.T, ns *netns.NS) {
	t.Helper()
	write(t, ns, "net/ipv6/conf/default/disable_ipv6", "1")
}

// newMacvlan is a network on the interface eth0 of the node.
func newMacvlan(t *testing.T, subnets ...string) network {
	return newNetwork(t, subnets...).with("mode", "macvlan").with("master", "eth0")
}

// TestMacvlanResult compares results with golden files and the pod's interface
// with what is wanted, and each with the other by a CHECK.
func TestMacvlanResult(t *testing.T) {
	const v4, v6 = "10.9.0.0/24", "fd09::/64"
	const plain = "macvlan bridge, queue 1000, mtu 1500"
	tests := map[string]struct {
		conf func(t *testing.T) network
		args string
		want string
	}{
		"no-ipam":    {conf: func(t *testing.T) network { return newMacvlan(t) }, want: plain},
		"dual-stack": {conf: func(t *testing.T) network { return newMacvlan(t, v4, v6) }, want: plain},
		"routes": {conf: func(t *testing.T) network {
			return newMacvlan(t, v4).withIPAM("routes", []network{{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.9.0.7"}})
		}, want: plain},
		"bridge":  {conf: func(t *testing.T) network { return newMacvlan(t, v4).with("macvlanMode", "bridge") }, want: plain},
		"private": {conf: func(t *testing.T) network { return newMacvlan(t, v4).with("macvlanMode", "private") }, want: "macvlan private, queue 1000, mtu 1500"},
		"vepa":    {conf: func(t *testing.T) network { return newMacvlan(t, v4).with("macvlanMode", "vepa") }, want: "macvlan vepa, queue 1000, mtu 1500"},
		"passthru": {conf: func(t *testing.T) network {
			return newMacvlan(t, v4).with("macvlanMode", "passthru")
		}, want: "macvlan passthru, queue 1000, mtu 1500"},
		"passthru-mac": {conf: func(t *testing.T) network {
			return newMacvlan(t, v4).with("macvlanMode", "passthru").with("mac", "02:aa:00:00:00:01")
		}, want: "macvlan passthru, queue 1000, mtu 1500"},
		"mtu":        {conf: func(t *testing.T) network { return newMacvlan(t, v4).with("mtu", 1400) }, want: "macvlan bridge, queue 1000, mtu 1400"},
		"bcqueuelen": {conf: func(t *testing.T) network { return newMacvlan(t, v4).with("bcqueuelen", 7) }, want: "macvlan bridge, queue 7, mtu 1500"},
		"mac": {conf: func(t *testing.T) network {
			return newMacvlan(t, v4).with("mac", "02:aa:00:00:00:01")
		}, want: plain},
		"mac-capability": {conf: func(t *testing.T) network {
			return newMacvlan(t, v4).with("mac", "02:aa:00:00:00:01").with("runtimeConfig", network{"mac": "02:aa:00:00:00:02"})
		}, args: "MAC=02:aa:00:00:00:03", want: plain},
		"mac-cni-args": {conf: func(t *testing.T) network {
			return newMacvlan(t, v4).with("mac", "02:aa:00:00:00:01")
		}, args: "MAC=02:aa:00:00:00:03", want: plain},
		"reference":      {conf: func(t *testing.T) network { return newMacvlan(t, v4).with("mode", "vepa") }, want: "macvlan vepa, queue 1000, mtu 1500"},
		"default-master": {conf: func(t *testing.T) network { return newMacvlan(t, v4).with("master", "") }, want: plain},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod-1"), tt.conf(t)
			newWire(t, node)
			node.ns.RunT(t, "ip", "route", "add", "default", "dev", "eth0")
			pod.args = tt.args
			out, err := node.call(node, "ADD", pod, marshal(conf))
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", "macvlan", name+".json"), namePlaces(t, out, node, pod))
			if got := describeMacvlan(t, pod); got != tt.want {
				t.Errorf("eth0 is a %s, want a %s", got, tt.want)
			}
			if _, err := node.call(node, "CHECK", pod, marshal(conf.with("prevResult", json.RawMessage(out)))); err != nil {
				t.Errorf("CHECK: %v", err)
			}
		})
	}
}

// describeMacvlan is what the kernel says of the pod's interface.
func describeMacvlan(t *testing.T, pod pod) string {
	t.Helper()
	fields := strings.Fields(pod.ns.RunT(t, "ip", "-details", "-oneline", "link", "show", pod.ifName))
	after := func(word string) string {
		for i, f := range fields[:len(fields)-1] {
			if f == word {
				return fields[i+1]
			}
		}
		return ""
	}
	_, own, _ := strings.Cut(strings.Join(fields, " "), " macvlan mode ")
	mode, _, _ := strings.Cut(own, " ")
	return "macvlan " + mode + ", queue " + after("bcqueuelen") + ", mtu " + after("mtu")
}

// TestMacvlanLinkInContainer gives a pod a second interface on its first.
func TestMacvlanLinkInContainer(t *testing.T) {
	node, pod := newNode(t), newPod(t, "pod")
	bridge := newNetwork(t, "10.9.0.0/24")
	node.addT(t, pod, bridge)
	second := pod
	second.ifName = "net1"
	conf := newMacvlan(t, "10.10.0.0/24").with("linkInContainer", true)
	result := node.addT(t, second, conf)
	if got, want := describeMacvlan(t, second), "macvlan bridge, queue 1000, mtu 1500"; got != want {
		t.Errorf("net1 is a %s, want a %s", got, want)
	}
	if !strings.Contains(pod.ns.RunT(t, "ip", "link", "show", "net1"), "net1@eth0:") {
		t.Error("net1 is not on eth0 of the pod")
	}
	if err := node.check(second, conf, result); err != nil {
		t.Errorf("CHECK: %v", err)
	}
	node.delT(t, second, conf)
	if links := linksOf(t, pod.ns, "macvlan"); len(links) != 0 {
		t.Errorf("left after DEL: %q", links)
	}
}

// TestMacvlanReaches has two pods and the network outside connect to each other.
func TestMacvlanReaches(t *testing.T) {
	tests := map[string]struct{ pods, outside []string }{
		"IPv4": {[]string{"10.9.0.0/24"}, []string{"10.9.0.254"}},
		"IPv6": {[]string{"fd09::/64"}, []string{"fd09::ffff"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, a, b := newNode(t), newPod(t, "a"), newPod(t, "b")
			bits := tt.pods[0][strings.Index(tt.pods[0], "/"):]
			outside := newWire(t, node, tt.outside[0]+bits)
			conf := newMacvlan(t, tt.pods...)
			ipA, ipB := node.addT(t, a, conf).IPs[0].Address.IP.String(), node.addT(t, b, conf).IPs[0].Address.IP.String()
			connect(t, a.ns, ipA, b.ns, ipB)
			connect(t, outside, tt.outside[0], a.ns, ipA)
			connect(t, b.ns, ipB, outside, tt.outside[0])
			connect(t, a.ns, "127.0.0.1", a.ns, "127.0.0.1")
		})
	}
}

// TestMacvlanAnnounces has the network outside know a pod's addresses by a
// hardware address that is gone, as after the addresses changed hands.
func TestMacvlanAnnounces(t *testing.T) {
	node, pod := newNode(t), newPod(t, "pod")
	outside := newWire(t, node, "10.9.0.254/24", "fd09::ffff/64")
	for _, addr := range []string{"10.9.0.2", "fd09::2"} {
		outside.RunT(t, "ip", "neigh", "add", addr, "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", "wire0")
	}
	mac := node.addT(t, pod, newMacvlan(t, "10.9.0.0/24", "fd09::/64")).Interfaces[0].Mac
	for _, addr := range []string{"10.9.0.2", "fd09::2"} {
		var known string
		for end := time.Now().Add(patience); time.Now().Before(end) && !strings.Contains(known, mac); {
			known = outside.RunT(t, "ip", "neigh", "show", addr, "dev", "wire0")
		}
		if !strings.Contains(known, mac) {
			t.Errorf("outside %s is known as %q, it has %s", addr, known, mac)
		}
	}
}

// TestMacvlanMeaning goes through the rules of the package comment: what a
// configuration is that may come from a reference plugin.
func TestMacvlanMeaning(t *testing.T) {
	tests := map[string]struct{ keys, want string }{
		"nothing":                       {`{}`, "veth"},
		"bridge":                        {`{"mode": "bridge"}`, "veth"},
		"bridge's key":                  {`{"isGateway": true}`, "veth"},
		"macvlan":                       {`{"mode": "macvlan"}`, "macvlan bridge"},
		"macvlan, in a mode":            {`{"mode": "macvlan", "macvlanMode": "vepa"}`, "macvlan vepa"},
		"macvlan and bridge's keys":     {`{"mode": "macvlan", "master": "eth0", "isGateway": true}`, "macvlan bridge"},
		"master":                        {`{"master": "eth0"}`, "macvlan bridge"},
		"master, bridge":                {`{"mode": "bridge", "master": "eth0"}`, "macvlan bridge"},
		"master, bridge, macvlanMode":   {`{"mode": "bridge", "master": "eth0", "macvlanMode": "private"}`, "macvlan private"},
		"macvlanMode":                   {`{"macvlanMode": "private"}`, "macvlan private"},
		"bcqueuelen":                    {`{"bcqueuelen": 5}`, "macvlan bridge"},
		"private":                       {`{"mode": "private"}`, "macvlan private"},
		"vepa, twice":                   {`{"mode": "vepa", "macvlanMode": "vepa"}`, "macvlan vepa"},
		"passthru":                      {`{"mode": "passthru"}`, "macvlan passthru"},
		"passthru with a key of bridge": {`{"mode": "passthru", "vlan": 7}`, "macvlan passthru"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t)
			newWire(t, node)
			node.ns.RunT(t, "ip", "route", "add", "default", "dev", "eth0")
			if err := json.Unmarshal([]byte(tt.keys), &conf); err != nil {
				t.Fatal(err)
			}
			node.addT(t, pod, conf)
			got := "veth"
			if len(linksOf(t, pod.ns, "macvlan")) == 1 {
				got, _, _ = strings.Cut(describeMacvlan(t, pod), ",")
			}
			if got != tt.want {
				t.Errorf("eth0 is a %s, want a %s", got, tt.want)
			}
		})
	}
}

// TestMacvlanIsRefused has every step of ADD fail, and compares what the kernel
// has on both sides, and that the address is free again.
func TestMacvlanIsRefused(t *testing.T) {
	const invalid, internal = types.ErrInvalidNetworkConfig, types.ErrInternal
	tests := map[string]struct {
		keys     string // JSON
		prepare  func(t *testing.T, node *node, conf network)
		held     bool // the address is in fact held
		wantCode uint
		want     string // part of the error
	}{
		"modes that differ":    {keys: `{"mode": "vepa", "macvlanMode": "bridge"}`, wantCode: invalid, want: `macvlanMode: "bridge" is not allowed together with mode: "vepa"`},
		"an unknown mode":      {keys: `{"macvlanMode": "source"}`, wantCode: invalid, want: `macvlanMode: "source" is unknown: it must be "bridge", "private", "vepa" or "passthru"`},
		"keys of both plugins": {keys: `{"mode": "bridge", "ipMasq": true}`, wantCode: invalid, want: `mode: "bridge" is not enough where the configuration has both master, of macvlan, and ipMasq, of bridge`},
		"a bad mac":            {keys: `{"mac": "01:00:5e:00:00:01"}`, wantCode: invalid, want: `mac: "01:00:5e:00:00:01" is not allowed`},
		"a queue of text":      {keys: `{"bcqueuelen": "5"}`, wantCode: invalid, want: `bcqueuelen: a JSON string is not allowed: it must be a whole number`},
		"a negative queue":     {keys: `{"bcqueuelen": -1}`, wantCode: invalid, want: `bcqueuelen: -1 is out of range: 0 (the kernel's default) to 4294967295 is allowed`},
		"a small MTU":          {keys: `{"mtu": 67}`, wantCode: invalid, want: `mtu: 67 is out of range: 0 (the master's) or 68 to the master's is allowed`},
		"an MTU above":         {keys: `{"mtu": 1501}`, wantCode: invalid, want: `mtu: 1501 is above 1500, that of the master eth0`},
		"a name that is none":  {keys: `{"master": "a/b"}`, wantCode: invalid, want: `master: "a/b" is not the name of an interface`},
		"no such master":       {keys: `{"master": "eth7"}`, wantCode: internal, want: `master: find interface eth7: no such interface`},
		"no default route":     {keys: `{"master": ""}`, wantCode: internal, want: `master: none is given, and there is no default route to take that of`},
		"the loopback":         {keys: `{"master": "lo"}`, wantCode: internal, want: `master: lo cannot have a macvlan in mode bridge: it is no Ethernet`},
		"no master in the pod": {keys: `{"linkInContainer": true}`, wantCode: internal, want: `master: find interface eth0: no such interface`},
		"a port of a bridge": {
			prepare: func(t *testing.T, node *node, _ network) {
				node.ns.RunT(t, "ip", "link", "add", "br7", "type", "bridge")
				node.ns.RunT(t, "ip", "link", "set", "eth0", "master", "br7")
			},
			wantCode: internal, want: "master: eth0 is part of the bridge br7",
		},
		"another passthru": {
			prepare: func(t *testing.T, node *node, _ network) {
				node.ns.RunT(t, "ip", "link", "add", "other0", "link", "eth0", "type", "macvlan", "mode", "passthru")
			},
			wantCode: internal, want: "master: eth0 is taken by macvlan other0 of the host",
		},
		"the pool is exhausted": {
			prepare: func(t *testing.T, _ *node, conf network) {
				other := newNode(t)
				newWire(t, other)
				other.addT(t, newPod(t, "holder"), conf)
			},
			held: true, wantCode: types.ErrTryAgainLater, want: "no addresses left",
		},
		"a route leads nowhere": {
			keys:     `{"macvlanMode": "passthru", "mac": "02:aa:00:00:00:01"}`,
			prepare:  func(_ *testing.T, _ *node, conf network) { conf.nowhere() },
			wantCode: internal, want: "add route 192.0.2.0/24 via 203.0.113.1 dev eth0: network is unreachable",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod := newNode(t), newPod(t, "failing")
			noIPv6(t, node.ns)
			noLinkLocal(t, pod.ns)
			newWire(t, node)
			conf := onlyAddress(t).with("mode", "macvlan").with("master", "eth0")
			delete(conf, "isGateway")
			if tt.keys != "" {
				if err := json.Unmarshal([]byte(tt.keys), &conf); err != nil {
					t.Fatal(err)
				}
			}
			if tt.prepare != nil {
				tt.prepare(t, node, conf)
			}
			host, inPod := dump(t, node.ns), dump(t, pod.ns)
			_, err := node.add(pod, conf)
			if code(err) != tt.wantCode || !strings.Contains(text(err), tt.want) {
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

// nowhere adds a route that no kernel takes.
func (n network) nowhere() {
	n["ipam"].(network)["routes"] = []network{{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}}
}

// TestMacvlanNamesThePod has the interface that is in the way in the namespace of
// a process, as those of pods are.
func TestMacvlanNamesThePod(t *testing.T) {
	node, holder, conf := newNode(t), newPod(t, "holder"), newMacvlan(t)
	newWire(t, node)
	node.addT(t, holder, conf)
	pause := exec.CommandContext(t.Context(), "sleep", "infinity")
	if err := holder.ns.Do(pause.Start); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = pause.Process.Kill(), pause.Wait() }()
	_, err := node.add(newPod(t, "pod"), conf.with("macvlanMode", "passthru"))
	if want := "master: eth0 is taken by macvlan eth0 of process"; !strings.Contains(text(err), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}
