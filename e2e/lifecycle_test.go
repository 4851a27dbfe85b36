package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// What becomes of a node's proxy is nothing to who has a connection, and nothing to
// who makes one.
func TestTrafficThroughRestarts(t *testing.T) {
	c := newCluster(t, 2, "ebpf")
	outside := c.NodePorts(t, 30080)
	for _, step := range []struct {
		name   string
		signal unix.Signal
		mode   string
		flags  []string
	}{
		{name: "killed", signal: unix.SIGKILL, mode: "ebpf"},
		{name: "ended", signal: unix.SIGTERM, mode: "ebpf"},
		{name: "maps of other sizes", signal: unix.SIGTERM, mode: "ebpf", flags: []string{"--map-size", "frontends=1000,backends=4000,flows=100000,datagrams=5000"}},
		{name: "to iptables", signal: unix.SIGTERM, mode: "iptables"},
		{name: "and back", signal: unix.SIGTERM, mode: "ebpf"},
		{name: "to iptables, killed", signal: unix.SIGKILL, mode: "iptables"},
		{name: "and back, killed", signal: unix.SIGKILL, mode: "ebpf"},
	} {
		t.Run(step.name, func(t *testing.T) {
			tr := traffic.Start(t, traffic.Source{Name: "pod", NS: c.Client.NS(), To: c.VIPs},
				traffic.Source{Name: "outside", NS: c.Outside(), To: outside})
			c.Restart(t, c.Nodes[0], step.signal, step.mode, step.flags...)
			tr.GoOn(t)
			tr.End(t)
		})
	}
}

// A pod that is made while no proxy runs is served all the same, by packets too, from
// its first one on: the plugin attaches what the proxy has pinned.
func TestNewPodWithoutProxy(t *testing.T) {
	c := newCluster(t, 1, "ebpf")
	kill(t, c.State().Nodes[0].Proxy)
	late, err := c.AddPod(t.Context(), c.Nodes[0], "late")
	if err != nil {
		t.Fatal(err)
	}
	for _, vip := range c.VIPs {
		reply, err := late.Ask(t.Context(), vip)
		if err != nil || !strings.HasPrefix(reply.Name, "web-") {
			t.Errorf("%s %s: answered by %q, %v", vip.Network, vip.Addr, reply.Name, err)
		}
	}
}

// In every mode cleanup leaves nothing of the proxy: no program, no pin, no rule.
func TestCleanup(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 1, mode)
			node := c.Nodes[0]
			kill(t, c.State().Nodes[0].Proxy)
			if left(t, node) == 0 {
				t.Error("before, nothing is there")
			}
			for range 2 {
				o := finish(t, inNode(t, node, fairlead(t.Context(), t, "cleanup", "--bpf-root", node.BPFRoot(), "--cni-conf-dir", t.TempDir())))
				told := strings.Contains(o.stderr, fmt.Sprintf("'fairlead node' runs here (process %d)", node.AgentProcess().PID))
				if o.code != 0 || !told || strings.Contains(o.stderr, "'fairlead proxy'") {
					t.Fatalf("cleanup: %+v", o)
				}
			}
			if n := left(t, node); n > 0 {
				t.Errorf("%d programs and chains are left", n)
			}
			if _, err := os.Stat(node.BPFRoot()); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the pins' folder is there: %v", err)
			}
		})
	}
}

// What others take away under a proxy that runs, the file system of its pins too, comes
// back by itself, each program once. Where that is only unmounted, nobody notices.
func TestPinsComeBack(t *testing.T) {
	c := newCluster(t, 1, "ebpf")
	node := c.Nodes[0]
	for name, take := range map[string]func() error{
		"cleanup": func() error {
			o := finish(t, inNode(t, node, fairlead(t.Context(), t, "cleanup", "--bpf-root", node.BPFRoot(), "--cni-conf-dir", t.TempDir())))
			if o.code != 0 || !strings.Contains(o.stderr, "'fairlead proxy' runs here") {
				return fmt.Errorf("%+v", o)
			}
			return nil
		},
		"unmounted": func() error { return unix.Unmount(node.BPFRoot(), unix.MNT_DETACH) },
		"unmounted and removed": func() error {
			return errors.Join(unix.Unmount(node.BPFRoot(), unix.MNT_DETACH), os.Remove(node.BPFRoot()))
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := left(t, node)
			var tr *traffic.Traffic
			if name != "cleanup" { // which ends all, until it comes back
				tr = traffic.Start(t, traffic.Source{Name: "pod", NS: c.Client.NS(), To: c.VIPs})
			}
			if err := take(); err != nil {
				t.Fatal(err)
			}
			awaitPins(t, node, before)
			if tr != nil {
				tr.GoOn(t)
				tr.End(t)
			}
			c.checkSpread(t)
		})
	}
}

// awaitPins waits until a proxy has pinned all that it pins, and that many programs are
// attached.
func awaitPins(t *testing.T, node *lab.Node, programs int) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := os.Stat(filepath.Join(node.BPFRoot(), "maps", "frontends"))
		n := left(t, node)
		if err == nil && n == programs {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d programs are attached instead of %d, pins: %v", n, programs, err)
		}
	}
}

// left counts what there is of a node's proxy: programs, and chains of every iptables.
func left(t *testing.T, node *lab.Node) (n int) {
	t.Helper()
	if node.Cgroup() != "" {
		packets, sockets := labtest.Attached(t, node)
		n = packets + sockets
	}
	for _, save := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		n += strings.Count(node.NS().RunT(t, save), "\n:FAIRLEAD-")
	}
	return n
}
