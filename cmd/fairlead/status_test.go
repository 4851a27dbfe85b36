package main

import (
	"bytes"
	"encoding/json"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/proxy/inspect"
)

func TestPrintStatuses(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	proxy := inspect.Status{
		Facts: inspect.Facts{
			Version: "v1", Node: "n1", Mode: "iptables", Why: "--mode auto, as eBPF cannot be used", Lacks: []string{"eBPF: no cgroup v2"},
			Backend: "iptables-nft 1.8.11", Source: "api server https://192.0.2.1", Started: now.Add(-time.Hour),
		},
		Heard: now.Add(-3 * time.Second), Synced: now.Add(-time.Minute), Took: time.Millisecond,
		LastError: "iptables-restore: no memory", Failed: now.Add(-2 * time.Minute),
		Frontends: 3, Pools: 2, Backends: 5, Flows: inspect.Flows{Tracked: 17},
		Busiest:   []inspect.Busy{{Service: "default/web", Port: "http", Connections: 130, New: 30}, {Service: "default/db", Connections: 7}},
		Over:      2 * time.Second,
		Conflicts: []string{"two want it"},
	}
	node := nodeStatus{
		Version: "v1", Node: "n1", Started: now.Add(-time.Minute), Source: "manifests /etc/c", Routing: "auto", Masquerade: "nftables",
		nodeCounts: nodeCounts{Nodes: 4, Wanted: 3, Programmed: 2, Tunnels: 1, MTU: 1450},
		Problems:   []cninode.Problem{{Member: "n2", Text: "it is not reached"}},
		Peers: []cninode.Peer{
			{Node: "n2", Kind: cninode.PeerMissing, Why: "it is not reached"},
			{Node: "n4", PodCIDR: netip.MustParsePrefix("10.244.4.0/24"), Kind: cninode.PeerMissing, Why: "the kernel does not have the route"},
			{Node: "n3", PodCIDR: netip.MustParsePrefix("10.244.3.0/24"), Kind: cninode.PeerDirect, Via: netip.MustParseAddr("192.0.2.3"), Device: "eth0"},
		},
		Ranges: []usage{{
			Network: "lan", Pool: "office", Closed: "retired", First: netip.MustParseAddr("192.0.2.16"), Last: netip.MustParseAddr("192.0.2.31"),
			Used: 2, Cooling: 1, Free: big.NewInt(13),
		}},
	}
	want := `
proxy       well: version v1 on node n1, up for 1h0m0s
data path   iptables, by --mode auto, as eBPF cannot be used: iptables-nft 1.8.11
            the node lacks: eBPF: no cgroup v2
objects     api server https://192.0.2.1, heard of 3s ago
kernel      up to date, last changed 1m0s ago in 1ms
            it did not take a change 2m0s ago: iptables-restore: no memory
services    3 destinations, 2 pools, 5 backends
flows       17 tracked by the kernel
busiest     130 connections to default/web:http, 15.0/s in the last 2s
            7 connections to default/db, 0.0/s in the last 2s
conflict    two want it
pods        ill: version v1 on node n1, up for 1m0s
objects     manifests /etc/c
routes      2 of 3 to 3 other nodes, routing auto, 1 tunnels, MTU 1450
            n4 10.244.4.0/24: not reached: the kernel does not have the route
masquerade  nftables
addresses   pool office (network lan), retired: 192.0.2.16-192.0.2.31: 2 used, 1 cooling, 13 free
problem     node n2: it is not reached
`
	s := &statuses{Status: &proxy, Pods: &node, at: now}
	wide := strings.Replace(want, "            n4", "            n2: not reached: it is not reached\n            n4", 1)
	wide = strings.Replace(wide, "masquerade", "            n3 10.244.3.0/24: direct, by eth0, via 192.0.2.3\nmasquerade", 1)
	for is, want := range map[bool]string{false: want, true: wide} {
		var got bytes.Buffer
		if err := printStatuses(&got, s, is, false); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), got.String()); diff != "" {
			t.Errorf("wide %t: (-want +got)\n%s", is, diff)
		}
	}
	if s.healthy() {
		t.Error("a node whose routes are missing is well")
	}
}

// Where 'fairlead node' runs and no proxy does, status is about that, and so is its
// exit code.
func TestNodeStatus(t *testing.T) {
	r := newNode(t)
	r.start()
	r.log.await("msg=connected")
	ask := "status --socket " + r.dir + "/no.sock --node-socket " + r.sock
	got := ""
	for end := time.Now().Add(20 * time.Second); !strings.Contains(got, "2 of 2 to 1 other nodes") && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got = answer(t, r.ns, ask)
	}
	if !strings.HasPrefix(got, "pods        well: version ") || !strings.Contains(got, "routes      2 of 2 to 1 other nodes, routing auto, MTU 1500\n") {
		t.Errorf("status:\n%s", got)
	}
	var s struct{ Pods nodeStatus }
	if err := json.Unmarshal([]byte(answer(t, r.ns, ask+" -o json")), &s); err != nil || s.Pods.Programmed != 2 || !s.Pods.Connected ||
		len(s.Pods.Peers) != 2 || s.Pods.Peers[0].Kind != cninode.PeerDirect || s.Pods.Peers[1].PodCIDR.String() != "fd00:244:2::/64" {
		t.Errorf("status -o json: %v, %+v", err, s)
	}
	r.ns.RunT(t, "ip", "addr", "del", "10.0.0.1/24", "dev", "eth0")
	r.log.await("its IPv4 address 10.0.0.1 is on no interface that is up")
	for end := time.Now().Add(20 * time.Second); !strings.Contains(got, "exit 1") && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		got = answer(t, r.ns, ask)
	}
	if !strings.Contains(got, "pods        ill: ") || !strings.Contains(got, "problem     node node-1: its IPv4 address") || !strings.Contains(got, "exit 1: fairlead: not all") {
		t.Errorf("status of a node without its address:\n%s", got)
	}
	r.stop()
	if got := answer(t, r.ns, ask); !strings.Contains(got, "'fairlead proxy' at "+r.dir+"/no.sock: it does not run there") {
		t.Errorf("status where nothing runs: %s", got)
	}
}
