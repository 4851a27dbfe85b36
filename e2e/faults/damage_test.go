package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
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

// newsLost has more happen to a node than the sockets hold by which its programs are
// told, while these stand still; and among all that others remove what is ours. It is
// mended all the same.
func (c cluster) newsLost(t *testing.T) {
	node := c.Nodes[0]
	lost := newsDropped(t, node)
	had := c.programmed(t)
	goOn := suspend(t, node)
	run(`
		ip link add crowd type veth peer name crowd-peer
		for i in $(seq 1500); do echo "link set crowd mtu $((1000 + i))"; echo "route add 198.18.0.1/32 dev lo table $((1000 + i))"; done | ip -batch -
		{ echo 'add table inet crowd; add chain inet crowd crowd'; for i in $(seq 3000); do echo 'add rule inet crowd crowd counter'; done; } | nft -f -
		ip route flush proto 250; ip -6 route flush proto 250
		nft delete table ip fairlead-node; nft delete table ip6 fairlead-node`)(t, node)
	if c.mode == "ebpf" {
		detach("packet")(t, node)
	} else {
		run("iptables -t nat -F FAIRLEAD-SERVICES")(t, node)
	}
	goOn()
	if newsDropped(t, node) == lost {
		t.Error("no news was lost: this test proves nothing")
	}
	took := eventually(t, func() error {
		if has := c.programmed(t); has < had {
			return fmt.Errorf("the proxy has programmed %d things of %d", has, had)
		}
		_, err := node.Output(t.Context(), "sh", "-ec", "nft list table ip fairlead-node; nft list table ip6 fairlead-node; ip route show proto 250 | grep .; ip -6 route show proto 250 | grep .")
		return err
	})
	t.Logf("all is mended after %s", took.Round(time.Millisecond))
	tr := traffic.Start(t, c.sources...)
	tr.End(t)
	run(`nft delete table inet crowd; ip link delete crowd
		for i in $(seq 1500); do echo "route flush table $((1000 + i))"; done | ip -batch -`)(t, node)
}

// programmed counts what the first node's proxy has at links, or as rules of the chain
// to which all are led that may be for a Service.
func (c cluster) programmed(t *testing.T) int {
	t.Helper()
	if c.mode == "ebpf" {
		packets, _ := labtest.Attached(t, c.Nodes[0])
		return packets
	}
	rules, err := c.Nodes[0].Output(t.Context(), "iptables", "-t", "nat", "-S", "FAIRLEAD-SERVICES")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(rules, "\n")
}

// newsDropped counts the messages of the kernel for which a socket in a node's namespace
// had no room: the column Drops.
func newsDropped(t *testing.T, n *lab.Node) (sum int) {
	t.Helper()
	text, err := n.Output(t.Context(), "cat", "/proc/net/netlink")
	if err != nil {
		t.Fatal(err)
	}
	names, sockets, _ := strings.Cut(text, "\n")
	at := slices.Index(strings.Fields(names), "Drops")
	for socket := range strings.Lines(sockets) {
		drops, err := strconv.Atoi(strings.Fields(socket)[at])
		if err != nil {
			t.Fatal(err)
		}
		sum += drops
	}
	return sum
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
	if d.metric == ofProxy { // what was counted may be the rest of the damage before
		eventually(t, func() error { return tells(node, log, "somebody removed or changed our rules") })
	}
	tr := traffic.Start(t, c.sources...)
	tr.End(t)
}

// tells says whether a proxy's log has words that were not there before.
func tells(node *lab.Node, before, words string) error {
	after, err := node.ProxyLog()
	if err == nil && !strings.Contains(after[len(before):], words) {
		err = fmt.Errorf("the log does not say %q:\n%s", words, after[len(before):])
	}
	return err
}
