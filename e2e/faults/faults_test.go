// Package faults breaks things while packets flow, and looks whether anybody notices:
// processes that are killed or stand still, rules and links that others remove, tables
// that are full, pods that lie. What was tried and seen is in docs/reliability.md.
//
// Each test is short here. At its whole size it is run by
//
//	go test ./e2e/faults -full -timeout 60m -v
//	go test ./e2e/faults -full -timeout 60m -v -run TestFaults/ebpf/killed
package faults

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/traffic"
)

var (
	full     = flag.Bool("full", false, "each fault at its whole size: this takes half an hour")
	programs labtest.Programs
)

func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }

// modes are those of the proxies.
var modes = []string{"iptables", "ebpf"}

// ways are those in which a proxy programs the kernel.
var ways = []struct {
	name, mode string
	flags      []string
}{
	{"iptables-nft", "iptables", []string{"--iptables-variant", "nft"}},
	{"iptables-legacy", "iptables", []string{"--iptables-variant", "legacy"}},
	{"ebpf", "ebpf", nil},
}

// TestFaults has one thing after the other happen to a cluster, in each mode.
func TestFaults(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 2, mode)
			for _, fault := range []struct {
				name string
				try  func(t *testing.T)
			}{
				{"killed", c.killed},
				{"suspended", c.suspended},
				{"SYN flood", c.synFlood},
				{"news lost", c.newsLost},
				{"table full", c.tableFull},
				{"odd packets", c.oddPackets},
				{"hostile pod", c.hostilePod},
				{"rolling update", c.rollingUpdate}, // the last: of the pods none is left
			} {
				t.Run(fault.name, fault.try)
			}
		})
	}
}

// size is how much of something a test does.
func size[T any](short, whole T) T {
	if *full {
		return whole
	}
	return short
}

// cluster is one whose Service is asked for by pods and from outside.
type cluster struct {
	*labtest.Cluster
	mode    string
	sources []traffic.Source
}

// frontends are those of its Service: at two virtual IPs and at nodes, of two families,
// each for three protocols.
const frontends = 12

func newCluster(t *testing.T, nodes int, mode string) cluster {
	t.Helper()
	c := labtest.NewCluster(t, lab.Options{Nodes: nodes, Mode: mode, BinDir: programs.Dir(t)})
	return cluster{c, mode, []traffic.Source{
		{Name: "pod", NS: c.Client.NS(), To: c.VIPs},
		{Name: "outside", NS: c.Outside(), To: c.NodePorts(t, 30080)},
	}}
}

// holdings are what a node has in its kernel for its programs' sake: they must not
// become more.
func holdings(t *testing.T, n *lab.Node) map[string]int {
	t.Helper()
	eventually(t, func() error { // a proxy that begins holds netfilter to its flows, if there are any
		tables, err := n.Output(t.Context(), "nft", "list", "tables")
		if err == nil && strings.Contains(tables, "fairlead-hold") {
			err = fmt.Errorf("%s has yet the table fairlead-hold", n.Name)
		}
		return err
	})
	had := map[string]int{"pins": pins(t, n.BPFRoot())}
	for name, command := range map[string]string{
		"rules":  "iptables-save; ip6tables-save; iptables-legacy-save 2>&1; ip6tables-legacy-save 2>&1",
		"tables": "nft list ruleset",
		"routes": "ip route show table all; ip -6 route show table all",
		"links":  "ip link",
	} {
		out, err := n.Output(t.Context(), "sh", "-c", command)
		if err != nil {
			t.Fatal(err)
		}
		had[name] = strings.Count(out, "\n")
	}
	if n.Cgroup() != "" {
		packets, sockets := labtest.Attached(t, n)
		had["programs"] = packets + sockets
	}
	return had
}

// pins counts the files below a folder.
func pins(t *testing.T, root string) (n int) {
	t.Helper()
	err := filepath.WalkDir(root, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			n++
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return n
}

// proxyMetrics is where, inside a node, its proxy answers /metrics.
const proxyMetrics = "127.0.0.1:10249"

// metric asks one of a node's programs for a figure; 0 if it has none.
func metric(t *testing.T, n *lab.Node, at, name string) int {
	t.Helper()
	text, err := get(t.Context(), n, "http://"+at+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text)
	if found == nil {
		return 0
	}
	value, err := strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(value)
}

func get(ctx context.Context, n *lab.Node, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return n.NS().Get(ctx, url)
}

// eventually waits until something holds, and says how long that took.
func eventually(t *testing.T, holds func() error) time.Duration {
	t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := holds()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > time.Minute {
			t.Fatal(fmt.Errorf("not within a minute: %w", err))
		}
	}
}
