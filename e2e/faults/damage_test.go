package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// damage is what another program does to a node.
type damage struct {
	name string
	do   func(t *testing.T, n *lab.Node)
	// at is whose metrics count the repair, by the metric.
	at, metric string
}

const ofProxy = "fairlead_repairs_total"

// TestDamage has another program remove what is ours. It is mended, whoever asks is
// answered again, and it is counted.
func TestDamage(t *testing.T) {
	for _, tt := range []struct {
		name, mode string
		flags      []string
		damages    []damage
	}{
		{"iptables-nft", "iptables", []string{"--iptables-variant", "nft"}, append(rules("nft"),
			shell("ruleset flushed", "nft flush ruleset"))},
		{"iptables-legacy", "iptables", []string{"--iptables-variant", "legacy"}, rules("legacy")},
		{"ebpf", "ebpf", nil, []damage{
			{"pins removed", removePins, proxyMetrics, ofProxy},
			{"programs of packets detached", detach("packet"), proxyMetrics, ofProxy},
			{"programs of sockets detached", detach("links"), proxyMetrics, ofProxy},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, 2, tt.mode)
			c.Restart(t, c.Nodes[0], unix.SIGTERM, tt.mode, tt.flags...)
			for _, d := range append(tt.damages, ofNode...) {
				t.Run(d.name, func(t *testing.T) { c.damage(t, d) })
			}
		})
	}
}

func rules(variant string) []damage {
	ours := "FAIRLEAD-SERVICES"
	return []damage{
		shell("table flushed", "iptables-"+variant+" -t nat -F"),
		shell("chain flushed", "iptables-"+variant+" -t nat -F "+ours),
		shell("rule deleted", "ip6tables-"+variant+" -t nat -D "+ours+" 1"),
		shell("jump deleted", "iptables-"+variant+" -t nat -D PREROUTING 1"),
		shell("tables restored without ours", fmt.Sprintf("iptables-%s-save | grep -v FAIRLEAD | iptables-%[1]s-restore", variant)),
	}
}

// ofNode is what is fairlead node's in every mode.
var ofNode = []damage{
	{"routes flushed", run("ip route flush proto 250; ip -6 route flush proto 250"), lab.AgentMetrics, `fairlead_node_repairs_total{what="routes"}`},
	{"masquerade removed", run("nft delete table ip fairlead-node; nft delete table ip6 fairlead-node"), lab.AgentMetrics, `fairlead_node_repairs_total{what="masquerade"}`},
}

func shell(name, script string) damage { return damage{name, run(script), proxyMetrics, ofProxy} }

func run(script string) func(t *testing.T, n *lab.Node) {
	return func(t *testing.T, n *lab.Node) {
		t.Helper()
		if _, err := n.Output(t.Context(), "sh", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
}

// removePins takes with them the programs that nothing else holds.
func removePins(t *testing.T, n *lab.Node) {
	t.Helper()
	for _, folder := range []string{"links", "packet", "programs", "maps"} {
		if err := os.RemoveAll(filepath.Join(n.BPFRoot(), folder)); err != nil {
			t.Fatal(err)
		}
	}
}

// detach leaves the pins in a folder, of links that are at nothing any more.
func detach(folder string) func(t *testing.T, n *lab.Node) {
	return func(t *testing.T, n *lab.Node) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(n.BPFRoot(), folder, "*"))
		if err != nil || len(found) == 0 {
			t.Fatalf("no pins in %s: %v", folder, err)
		}
		for _, pin := range found {
			l, err := link.LoadPinnedLink(pin, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Detach(); err != nil {
				t.Fatal(err)
			}
			_ = l.Close()
		}
	}
}

func (c cluster) damage(t *testing.T, d damage) {
	node := c.Nodes[0]
	before := metric(t, node, d.at, d.metric)
	log, err := node.ProxyLog()
	if err != nil {
		t.Fatal(err)
	}
	d.do(t, node)
	took := eventually(t, func() error {
		if metric(t, node, d.at, d.metric) == before {
			return fmt.Errorf("%s is still %d", d.metric, before)
		}
		return nil
	})
	t.Logf("mended and counted after %s", took.Round(time.Millisecond))
	tr := traffic.Start(t, c.sources...)
	tr.End(t, "")
	if d.metric != ofProxy {
		return
	}
	after, err := node.ProxyLog()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(after[len(log):], "somebody removed our rules") {
		t.Errorf("the log does not say so:\n%s", after[len(log):])
	}
}
