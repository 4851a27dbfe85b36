package cni_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/golden"
	"github.com/fairlead/fairlead/e2e/netns"
)

// TestAddResult compares results with golden files, and each with the kernel,
// by a CHECK.
func TestAddResult(t *testing.T) {
	const v4, v6 = "10.9.0.0/24", "fd09::/64"
	tests := map[string]struct {
		conf func(t *testing.T) network
		args string
	}{
		"no-ipam":    {conf: func(t *testing.T) network { return newNetwork(t) }},
		"ipv4":       {conf: func(t *testing.T) network { return newNetwork(t, v4) }},
		"ipv6":       {conf: func(t *testing.T) network { return newNetwork(t, v6).with("isGateway", true) }},
		"dual-stack": {conf: func(t *testing.T) network { return newNetwork(t, v4, v6).with("isGateway", true) }},
		"gateway":    {conf: func(t *testing.T) network { return newNetwork(t, v4).with("isGateway", true) }},
		"force-address": {conf: func(t *testing.T) network {
			return newNetwork(t, v4).with("isGateway", true).with("forceAddress", true)
		}},
		"default-gateway": {conf: func(t *testing.T) network { return newNetwork(t, v4, v6).with("isDefaultGateway", true) }},
		"default-gateway-and-route": {conf: func(t *testing.T) network {
			return newNetwork(t, v4).with("isDefaultGateway", true).withIPAM("routes", []network{{"dst": "0.0.0.0/0"}})
		}},
		"routes": {conf: func(t *testing.T) network {
			return newNetwork(t, v4, v6).with("isGateway", true).withIPAM("routes", []network{
				{"dst": "0.0.0.0/0"},
				{"dst": "10.8.0.0/16", "gw": "10.9.0.7", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 100},
				{"dst": "10.7.0.0/16", "scope": 253},
				{"dst": "::/0"},
			})
		}},
		"bridge-name": {conf: func(t *testing.T) network { return newNetwork(t, v4).with("bridge", "mybr0") }},
		"mtu":         {conf: func(t *testing.T) network { return newNetwork(t, v4).with("mtu", 1400) }},
		"hairpin":     {conf: func(t *testing.T) network { return newNetwork(t, v4).with("hairpinMode", true) }},
		"isolation":   {conf: func(t *testing.T) network { return newNetwork(t, v4).with("portIsolation", true) }},
		"masquerade":  {conf: func(t *testing.T) network { return newNetwork(t, v4, v6).with("ipMasq", true) }},
		"masquerade-iptables": {conf: func(t *testing.T) network {
			return newNetwork(t, v4).with("ipMasq", true).with("ipMasqBackend", "iptables").with("nonMasqueradeCIDRs", []string{"10.0.0.0/8"})
		}},
		"masquerade-nftables": {conf: func(t *testing.T) network {
			return newNetwork(t, v4).with("ipMasq", true).with("ipMasqBackend", "nftables").with("nonMasqueradeCIDRs", []string{"10.0.0.0/8"})
		}},
		"macspoofchk": {conf: func(t *testing.T) network { return newNetwork(t, v4).with("macspoofchk", true) }},
		"enabledad":   {conf: func(t *testing.T) network { return newNetwork(t, v4, v6).with("enabledad", true) }},
		"disabled":    {conf: func(t *testing.T) network { return newNetwork(t).with("disableContainerInterface", true) }},
		"promisc":     {conf: func(t *testing.T) network { return newNetwork(t, v4).with("promiscMode", true) }},
		"mac-capability": {
			conf: func(t *testing.T) network {
				return newNetwork(t, v4).with("runtimeConfig", network{"mac": "02:aa:00:00:00:01"}).
					with("args", network{"cni": network{"mac": "02:aa:00:00:00:02"}})
			},
			args: "IgnoreUnknown=1;MAC=02:aa:00:00:00:03",
		},
		"mac-args": {
			conf: func(t *testing.T) network {
				return newNetwork(t, v4).with("args", network{"cni": network{"mac": "02:aa:00:00:00:02"}})
			},
			args: "IgnoreUnknown=1;MAC=02:aa:00:00:00:03",
		},
		"mac-cni-args": {
			conf: func(t *testing.T) network { return newNetwork(t, v4) },
			args: "IgnoreUnknown=1;K8S_POD_NAME=web;MAC=02:aa:00:00:00:03",
		},
		"dns": {conf: func(t *testing.T) network {
			return newNetwork(t, v4).with("dns", network{"nameservers": []string{"10.9.0.53"}, "search": []string{"cluster.local"}})
		}},
		"dns-capability": {conf: func(t *testing.T) network {
			return newNetwork(t, v4).with("dns", network{"nameservers": []string{"10.9.0.53"}}).with("runtimeConfig", network{
				"dns": network{"servers": []string{"10.9.0.54"}, "searches": []string{"pod.local"}, "options": []string{"ndots:5"}},
			})
		}},
		"chained": {conf: func(t *testing.T) network {
			return newNetwork(t, v4).with("isDefaultGateway", true).with("prevResult", network{
				"cniVersion": "1.1.0",
				"interfaces": []network{{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": "/run/netns/other"}, {"name": "tun0"}},
				"ips":        []network{{"address": "127.0.0.1/8", "interface": 0}, {"address": "192.0.2.7/24", "gateway": "192.0.2.1"}},
				"dns":        network{"nameservers": []string{"192.0.2.53"}},
			})
		}},
		"version-0.3.0": {conf: func(t *testing.T) network { return newNetwork(t, v4, v6).with("cniVersion", "0.3.0") }},
		"version-0.3.1": {conf: func(t *testing.T) network { return newNetwork(t, v4).with("cniVersion", "0.3.1") }},
		"version-0.4.0": {conf: func(t *testing.T) network { return newNetwork(t, v4, v6).with("cniVersion", "0.4.0") }},
		"version-1.0.0": {conf: func(t *testing.T) network { return newNetwork(t, v4, v6).with("cniVersion", "1.0.0") }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, pod, conf := newNode(t), newPod(t, "pod-1"), tt.conf(t)
			pod.args = tt.args
			out, err := node.call(node, "ADD", pod, marshal(conf))
			if err != nil {
				t.Fatal(err)
			}
			compareGolden(t, filepath.Join("testdata", "add", name+".json"), namePlaces(t, out, node, pod))
			if strings.HasPrefix(conf["cniVersion"].(string), "0.3.") || name == "chained" {
				return // has no CHECK; has things that are not there
			}
			var result json.RawMessage = out
			if _, err := node.call(node, "CHECK", pod, marshal(conf.with("prevResult", result))); err != nil {
				t.Errorf("CHECK: %v", err)
			}
		})
	}
}

// namePlaces replaces what differs from run to run by what it is: the hardware
// addresses that the kernel has, and the path of the pod's namespace.
func namePlaces(t *testing.T, result []byte, node *node, pod pod) []byte {
	t.Helper()
	replace := []string{pod.netns, "<path of the pod>"}
	for _, place := range []struct { // in order: an address that is in both, as that of lo, counts for the first
		name string
		ns   *netns.NS
	}{{"host", node.ns}, {"pod", pod.ns}} {
		var links []struct{ IfName, Address string }
		if err := json.Unmarshal([]byte(place.ns.RunT(t, "ip", "-json", "link")), &links); err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if !strings.HasPrefix(l.Address, "02:aa:") { // of the configuration
				replace = append(replace, l.Address, fmt.Sprintf("<of %s in the %s>", l.IfName, place.name))
			}
		}
	}
	return []byte(strings.NewReplacer(replace...).Replace(string(result)) + "\n")
}

func compareGolden(t *testing.T, path string, got []byte) {
	t.Helper()
	golden.Compare(t, path, string(got))
}

// TestPodsReachEachOther has two pods, the host and an address behind the host
// connect to each other, and looks whose address the server sees.
func TestPodsReachEachOther(t *testing.T) {
	const v4, v6 = "10.9.0.0/24", "fd09::/64"
	tests := map[string]struct {
		subnets []string
		behind  []string
	}{
		"IPv4":       {[]string{v4}, []string{"192.0.2.1"}},
		"IPv6":       {[]string{v6}, []string{"2001:db8::1"}},
		"dual stack": {[]string{v4, v6}, []string{"192.0.2.1", "2001:db8::1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, conf := newNode(t), newNetwork(t, tt.subnets...).with("isDefaultGateway", true)
			a, b := newPod(t, "a"), newPod(t, "b")
			addrsA, addrsB := node.addT(t, a, conf).IPs, node.addT(t, b, conf).IPs
			node.ns.RunT(t, "ip", "link", "set", "lo", "up")
			for i, behind := range tt.behind {
				node.ns.RunT(t, "ip", "addr", "add", behind, "dev", "lo", "nodad")
				ipA, ipB := addrsA[i].Address.IP.String(), addrsB[i].Address.IP.String()
				gateway := addrsA[i].Gateway.String()
				connect(t, a.ns, ipA, b.ns, ipB)
				connect(t, b.ns, ipB, a.ns, ipA)
				connect(t, a.ns, ipA, node.ns, gateway)
				connect(t, node.ns, gateway, b.ns, ipB)
				connect(t, a.ns, ipA, node.ns, behind)
				connect(t, a.ns, "127.0.0.1", a.ns, "127.0.0.1")
			}
		})
	}
}

// connect opens a TCP connection to an address in one namespace from another,
// where it must come from the address given.
func connect(t *testing.T, from *netns.NS, fromAddr string, to *netns.NS, toAddr string) {
	t.Helper()
	var server net.Listener
	err := to.Do(func() (err error) {
		server, err = net.Listen("tcp", net.JoinHostPort(toAddr, "0"))
		return err
	})
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = server.Close() }()
	var client net.Conn
	err = from.Do(func() (err error) {
		client, err = net.DialTimeout("tcp", server.Addr().String(), patience)
		return err
	})
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = client.Close() }()
	served, err := server.Accept()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = served.Close() }()
	if host, _, _ := net.SplitHostPort(served.RemoteAddr().String()); host != fromAddr {
		t.Errorf("%s saw a connection from %s, it is %s", toAddr, host, fromAddr)
	}
}

func TestPoolIsExhausted(t *testing.T) {
	node, conf := newNode(t), newNetwork(t, "10.9.0.0/24").with("isGateway", true)
	noLinkLocal(t, node.ns)
	seen := map[string]bool{}
	for i := range 253 { // 254 hosts but the gateway
		result := node.addT(t, newPod(t, fmt.Sprintf("pod-%d", i)), conf)
		seen[result.IPs[0].Address.String()] = true
	}
	if len(seen) != 253 {
		t.Errorf("253 pods got %d different addresses", len(seen))
	}
	one := newPod(t, "one-too-many")
	before := dump(t, node.ns)
	_, err := node.add(one, conf)
	if code(err) != types.ErrTryAgainLater || text(err) != "no addresses left in 10.9.0.0/24" {
		t.Errorf("code %d, error %v", code(err), err)
	}
	compare(t, "host", before, dump(t, node.ns))
}

// TestAddsAtOnce has many pods come to a node that has no bridge yet, a third
// of them with a configuration that fails after the bridge was made. The others
// must come out of it connected, and the bridge with one address.
func TestAddsAtOnce(t *testing.T) {
	const pods = 24
	node := newNode(t)
	good := newNetwork(t, "10.9.0.0/24").with("isGateway", true)
	bad := good.withIPAM("routes", []network{{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}}) // a gateway that is nowhere

	results := make([]*types100.Result, pods)
	errs := make([]error, pods)
	all := make([]pod, pods)
	var wait sync.WaitGroup
	for i := range pods {
		all[i] = newPod(t, fmt.Sprintf("pod-%d", i))
		wait.Go(func() {
			conf := good
			if i%3 == 0 {
				conf = bad
			}
			results[i], errs[i] = node.add(all[i], conf)
		})
	}
	wait.Wait()

	addrs := map[string]bool{}
	for i, err := range errs {
		if (err != nil) != (i%3 == 0) {
			t.Errorf("pod %d: error %v", i, err)
		}
		if err != nil || t.Failed() {
			continue
		}
		addr := results[i].IPs[0].Address.IP.String()
		addrs[addr] = true
		connect(t, all[i].ns, addr, node.ns, "10.9.0.1")
		if err := node.check(all[i], good, results[i]); err != nil {
			t.Errorf("pod %d: CHECK: %v", i, err)
		}
	}
	if want := pods - (pods+2)/3; len(addrs) != want {
		t.Errorf("%d pods have %d different addresses", want, len(addrs))
	}
	if ports := strings.Count(node.ns.RunT(t, "ip", "link", "show", "type", "veth"), "master cni0"); ports != len(addrs) {
		t.Errorf("%d ports for %d pods", ports, len(addrs))
	}
}

// TestGatewayOfABridgeThatIsThere is what isGateway and forceAddress do on a
// bridge that somebody else made.
func TestGatewayOfABridgeThatIsThere(t *testing.T) {
	const gateway = "10.9.0.1/24"
	tests := map[string]struct {
		present []string
		conf    network
		want    []string // addresses of the bridge
		wantErr string
	}{
		"has no address":   {conf: network{"isGateway": true}, want: []string{gateway}},
		"has the gateway":  {present: []string{gateway}, conf: network{"isGateway": true}, want: []string{gateway}},
		"is no gateway":    {present: []string{"10.1.1.1/24"}, want: []string{"10.1.1.1/24"}},
		"and another":      {present: []string{"10.1.1.1/24", gateway}, conf: network{"isGateway": true}, want: []string{"10.1.1.1/24", gateway}},
		"has another":      {present: []string{"10.1.1.1/24"}, conf: network{"isGateway": true}, want: []string{"10.1.1.1/24"}, wantErr: "bridge cni0 has the address 10.1.1.1/24, which is in the way of the gateway 10.9.0.1/24: only forceAddress: true replaces it"},
		"gives way":        {present: []string{"10.1.1.1/24"}, conf: network{"isGateway": true, "forceAddress": true}, want: []string{gateway}},
		"IPv6 is not that": {present: []string{"fd01::1/64"}, conf: network{"isGateway": true}, want: []string{gateway, "fd01::1/64"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node := newNode(t)
			node.ns.RunT(t, "ip", "link", "add", "cni0", "up", "type", "bridge")
			for _, addr := range tt.present {
				node.ns.RunT(t, "ip", "addr", "add", addr, "dev", "cni0")
			}
			conf := newNetwork(t, "10.9.0.0/24")
			for key, value := range tt.conf {
				conf = conf.with(key, value)
			}
			_, err := node.add(newPod(t, "pod"), conf)
			if (err == nil) != (tt.wantErr == "") || err != nil && err.Error() != tt.wantErr {
				t.Errorf("error %v, want %q", err, tt.wantErr)
			}
			if diff := cmp.Diff(tt.want, globalAddresses(t, node.ns, "cni0")); diff != "" {
				t.Errorf("addresses of the bridge (-want +got):\n%s", diff)
			}
		})
	}
}

// TestBridgeOfPodsKeepsItsMAC is about a bridge that somebody else made, and
// whose hardware address would follow its ports.
func TestBridgeOfPodsKeepsItsMAC(t *testing.T) {
	node, conf := newNode(t), newNetwork(t, "10.9.0.0/24").with("isGateway", true)
	node.ns.RunT(t, "ip", "link", "add", "cni0", "type", "bridge")
	mac := func(result *types100.Result) string { return result.Interfaces[0].Mac }
	first := mac(node.addT(t, newPod(t, "pod-1"), conf))
	node.ns.RunT(t, "ip", "link", "set", node.addT(t, newPod(t, "pod-2"), conf).Interfaces[1].Name, "address", "02:00:00:00:00:01")
	if last := mac(node.addT(t, newPod(t, "pod-3"), conf)); last != first {
		t.Errorf("hardware address was %s and is %s", first, last)
	}
}

// TestIPv6WhereItIsOff is a node, and a pod, that have IPv6 off for interfaces.
func TestIPv6WhereItIsOff(t *testing.T) {
	node, pod, conf := newNode(t), newPod(t, "pod"), newNetwork(t, "fd09::/64").with("isGateway", true)
	for _, ns := range []*netns.NS{node.ns, pod.ns} {
		write(t, ns, "net/ipv6/conf/all/disable_ipv6", "1")
		write(t, ns, "net/ipv6/conf/default/disable_ipv6", "1")
	}
	result := node.addT(t, pod, conf)
	connect(t, pod.ns, result.IPs[0].Address.IP.String(), node.ns, "fd09::1")
}

// TestNeighboursLearnTheNewOwner has the host know the address of the pod by the
// hardware address of the pod that had it before.
func TestNeighboursLearnTheNewOwner(t *testing.T) {
	node, conf := newNode(t), newNetwork(t, "10.9.0.0/24", "fd09::/64").with("isGateway", true)
	node.addT(t, newPod(t, "first"), conf)
	addrs := []string{"10.9.0.3", "fd09::3"}
	for _, addr := range addrs {
		node.ns.RunT(t, "ip", "neigh", "add", addr, "lladdr", "02:00:00:00:00:99", "nud", "stale", "dev", "cni0")
	}
	mac := node.addT(t, newPod(t, "second"), conf).Interfaces[2].Mac
	for _, addr := range addrs {
		eventually(t, func() string {
			known := node.ns.RunT(t, "ip", "neigh", "show", addr)
			if strings.Contains(known, mac) {
				return ""
			}
			return fmt.Sprintf("the host knows %s as %q, not by %s", addr, known, mac)
		})
	}
}

// TestForwardingIsOn is what isGateway asks of the node.
func TestForwardingIsOn(t *testing.T) {
	const v4, v6 = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
	tests := map[string]struct {
		subnets []string
		gateway bool
		want    [2]string
	}{
		"no gateway":   {[]string{"10.9.0.0/24", "fd09::/64"}, false, [2]string{"0", "0"}},
		"IPv4 gateway": {[]string{"10.9.0.0/24"}, true, [2]string{"1", "0"}},
		"IPv6 gateway": {[]string{"fd09::/64"}, true, [2]string{"0", "1"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node := newNode(t)
			write(t, node.ns, v4, "0")
			node.addT(t, newPod(t, "pod"), newNetwork(t, tt.subnets...).with("isGateway", tt.gateway))
			if got := [2]string{read(t, node.ns, v4), read(t, node.ns, v6)}; got != tt.want {
				t.Errorf("forwarding of IPv4 and IPv6: %q, want %q", got, tt.want)
			}
			if ra := read(t, node.ns, "net/ipv6/conf/cni0/accept_ra"); ra != "0" {
				t.Errorf("the bridge takes routes from routers among the pods: accept_ra is %s", ra)
			}
		})
	}
}

func read(t *testing.T, ns *netns.NS, sysctl string) string {
	t.Helper()
	return strings.TrimSpace(ns.RunT(t, "cat", "/proc/sys/"+sysctl))
}

func write(t *testing.T, ns *netns.NS, sysctl, value string) {
	t.Helper()
	if err := ns.Do(func() error { return os.WriteFile("/proc/sys/"+sysctl, []byte(value), 0o644) }); err != nil {
		t.Fatal(err)
	}
}

func globalAddresses(t *testing.T, ns *netns.NS, device string) []string {
	t.Helper()
	var addrs []string
	for line := range strings.Lines(ns.RunT(t, "ip", "-oneline", "addr", "show", "dev", device, "scope", "global")) {
		addrs = append(addrs, strings.Fields(line)[3]) // index, device, family, address
	}
	return addrs
}

// eventually waits until nothing is wrong any more.
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	what := wrong()
	for end := time.Now().Add(patience); what != "" && time.Now().Before(end); {
		what = wrong()
	}
	if what != "" {
		t.Error(what)
	}
}
