package plugin

import "testing"

// comparison is a row of the table: a configuration of a reference plugin.
type comparison struct {
	reference string // the plugin
	name      string
	// keys are the configuration, in JSON, but for type and for type and dataDir
	// of its IPAM.
	keys         string
	capabilities map[string]any
	args         [][2]string // CNI_ARGS
	prepare      func(t *testing.T, node *node, pod pod)
	wanted       []difference // beyond those that every row may have
}

// Subnets of the rows.
const (
	v4   = `"ipam": {"subnet": "10.9.0.0/24"}`
	v6   = `"ipam": {"subnet": "fd09::/64"}`
	both = `"ipam": {"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]]}`
)

// parity has no VLANs, which the bridges of many kernels do not know, and does
// not look at the rules of ipMasq and macspoofchk, which are wanted to be others:
// package cni tests both by packets.
var parity = []comparison{
	{reference: "bridge", name: "nothing", keys: `{}`},
	{reference: "bridge", name: "IPv4", keys: `{` + v4 + `}`},
	{reference: "bridge", name: "IPv6", keys: `{` + v6 + `}`, wanted: withIPv6},
	{reference: "bridge", name: "dual stack", keys: `{` + both + `}`, wanted: withIPv6},
	{reference: "bridge", name: "gateway", keys: `{"isGateway": true, ` + both + `}`, wanted: withIPv6},
	{reference: "bridge", name: "default gateway", keys: `{"isDefaultGateway": true, ` + both + `}`, wanted: withIPv6},
	{reference: "bridge", name: "name", keys: `{"bridge": "mybr0", ` + v4 + `}`},
	{reference: "bridge", name: "MTU", keys: `{"mtu": 1400, ` + v4 + `}`},
	{reference: "bridge", name: "hairpin", keys: `{"hairpinMode": true, ` + v4 + `}`},
	{reference: "bridge", name: "promisc", keys: `{"promiscMode": true, ` + v4 + `}`},
	{reference: "bridge", name: "routes", keys: `{"isGateway": true, "ipam": {"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]], "routes": [
		{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.9.0.7", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 100},
		{"dst": "::/0"}]}}`, wanted: []difference{noDAD, announcesIPv6, obeysRoutes}},
	{reference: "bridge", name: "MAC of a capability", keys: `{` + v4 + `, "capabilities": {"mac": true}}`,
		capabilities: map[string]any{"mac": "02:aa:00:00:00:01"}},
	{reference: "bridge", name: "MAC and address of arguments", keys: `{` + v4 + `}`,
		args: [][2]string{{"IgnoreUnknown", "1"}, {"MAC", "02:aa:00:00:00:01"}, {"IP", "10.9.0.77"}}},
	{reference: "bridge", name: "addresses of a capability", keys: `{` + both + `, "capabilities": {"ips": true}}`,
		capabilities: map[string]any{"ips": []string{"10.9.0.77/24", "fd09::77"}}, wanted: withIPv6},
	{reference: "bridge", name: "ranges of a capability", keys: `{"isGateway": true, "ipam": {}, "capabilities": {"ipRanges": true}}`,
		capabilities: map[string]any{"ipRanges": [][]object{{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "gateway": "10.9.0.254"}}}}},
	{reference: "bridge", name: "DNS", keys: `{"dns": {"nameservers": ["10.9.0.53"], "search": ["cluster.local"]}, ` + v4 + `}`},
	{reference: "bridge", name: "a bridge that is there", keys: `{"bridge": "old0", "isGateway": true, "mtu": 1400, ` + both + `}`, prepare: withBridge, wanted: withIPv6},
	{reference: "bridge", name: "another address", keys: `{"bridge": "old0", "isGateway": true, "forceAddress": true, ` + v4 + `}`, prepare: withAddress},
	{reference: "bridge", name: "isolation", keys: `{"portIsolation": true, ` + v4 + `}`},
	{reference: "bridge", name: "source check", keys: `{"macspoofchk": true, ` + v4 + `}`},
	{reference: "bridge", name: "duplicate address detection", keys: `{"enabledad": true, ` + both + `}`, wanted: []difference{announcesIPv6}},
	{reference: "bridge", name: "interface left down", keys: `{"disableContainerInterface": true}`},
	{reference: "bridge", name: "masquerade by iptables", keys: `{"isGateway": true, "ipMasq": true, "ipMasqBackend": "iptables", ` + v4 + `}`},
	{reference: "bridge", name: "masquerade by nftables", keys: `{"isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", ` + v4 + `}`},

	{reference: "macvlan", name: "nothing", keys: `{"master": "eth0"}`, prepare: withWire},
	{reference: "macvlan", name: "IPv4", keys: `{"master": "eth0", "mode": "bridge", ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "IPv6", keys: `{"master": "eth0", ` + v6 + `}`, prepare: withWire, wanted: macvlanIPv6},
	{reference: "macvlan", name: "dual stack", keys: `{"master": "eth0", ` + both + `}`, prepare: withWire, wanted: macvlanIPv6},
	{reference: "macvlan", name: "duplicate address detection", keys: `{"master": "eth0", "enabledad": true, ` + both + `}`, prepare: withWire},
	{reference: "macvlan", name: "private", keys: `{"mode": "private", ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "vepa", keys: `{"mode": "vepa", ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "passthru", keys: `{"mode": "passthru", ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "MTU", keys: `{"master": "eth0", "mtu": 1400, ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "queue", keys: `{"master": "eth0", "bcqueuelen": 7, ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "MAC", keys: `{"master": "eth0", "mac": "02:aa:00:00:00:01", ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "MAC of a capability", keys: `{"master": "eth0", "mac": "02:aa:00:00:00:01", "capabilities": {"mac": true}, ` + v4 + `}`,
		capabilities: map[string]any{"mac": "02:aa:00:00:00:02"}, prepare: withWire, wanted: macvlanIPv4},
	{reference: "macvlan", name: "MAC in mode passthru", keys: `{"mode": "passthru", "mac": "02:aa:00:00:00:01", ` + v4 + `}`, prepare: withWire, wanted: []difference{noDADOfItsOwn, announcesNothing, obeysMAC}},
	{reference: "macvlan", name: "master in the pod", keys: `{"master": "net0", "linkInContainer": true, ` + v4 + `}`,
		prepare: withMaster, wanted: macvlanIPv4},
	{reference: "macvlan", name: "routes", keys: `{"master": "eth0", "ipam": {"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd09::/64"}]], "routes": [
		{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16", "gw": "10.9.0.7"}, {"dst": "::/0"}]}}`, prepare: withWire, wanted: macvlanIPv6},
	{reference: "macvlan", name: "DNS", keys: `{"master": "eth0", "dns": {"nameservers": ["10.9.0.53"]}, ` + v4 + `}`, prepare: withWire, wanted: macvlanIPv4},
}

// The differences of most rows.
var (
	withIPv6    = []difference{noDAD, announcesIPv6}
	macvlanIPv4 = []difference{noDADOfItsOwn, announcesNothing}
	macvlanIPv6 = []difference{noDAD, noDADOfItsOwn}
)

// withMaster gives the pod an interface of its own.
func withMaster(t *testing.T, node *node, pod pod) {
	node.ns.RunT(t, "ip", "link", "add", "wire0", "up", "type", "veth", "peer", "name", "net0", "netns", pod.ns.Path())
	pod.ns.RunT(t, "ip", "link", "set", "net0", "up")
}

// withBridge gives the node a bridge of somebody else's.
func withBridge(t *testing.T, node *node, _ pod) {
	node.ns.RunT(t, "ip", "link", "add", "old0", "up", "mtu", "1450", "type", "bridge")
}

// withAddress gives the bridge an address.
func withAddress(t *testing.T, node *node, pod pod) {
	withBridge(t, node, pod)
	node.ns.RunT(t, "ip", "addr", "add", "10.1.1.1/24", "dev", "old0")
}

// withWire gives the node an interface eth0, by which its default route goes.
func withWire(t *testing.T, node *node, _ pod) {
	node.ns.RunT(t, "ip", "link", "add", "eth0", "up", "type", "veth", "peer", "name", "wire0")
	node.ns.RunT(t, "ip", "link", "set", "wire0", "up")
	node.ns.RunT(t, "ip", "route", "add", "default", "dev", "eth0")
}
