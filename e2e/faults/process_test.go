package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// suspended has a node's programs stand still, as a debugger or a frozen cgroup does it,
// while an endpoint and a node come. Nobody notices, and when they go on they do what
// they have missed.
func (c cluster) suspended(t *testing.T) {
	node := c.Nodes[0]
	tr := traffic.Start(t, c.sources...)
	goOn := suspend(t, node)
	c.Web = append(c.Web, labtest.AddPod(t, c.Lab, node, "late"))
	if err := c.Apply(lab.Slices(c.Service, c.Web...)...); err != nil {
		t.Fatal(err)
	}
	write(t, node, "late.yaml", nodesText(1))
	time.Sleep(size(time.Second, time.Minute))
	goOn()
	c.awaitAnswer(t, "late")
	c.awaitRoute(t, true)
	write(t, node, "late.yaml", "")
	c.awaitRoute(t, false)
	tr.GoOn(t)
	tr.End(t)
}

// suspend has both programs of a node stand still until goOn is called.
func suspend(t *testing.T, n *lab.Node) (goOn func()) {
	t.Helper()
	pids := []int{n.ProxyProcess().PID, n.AgentProcess().PID}
	signal := func(s unix.Signal) {
		t.Helper()
		for _, pid := range pids {
			if err := unix.Kill(pid, s); err != nil {
				t.Fatal(err)
			}
		}
	}
	signal(unix.SIGSTOP)
	return func() { t.Helper(); signal(unix.SIGCONT) }
}

// awaitRoute waits until the first node has the route to the first of nodesText, or has
// it no more.
func (c cluster) awaitRoute(t *testing.T, wanted bool) {
	t.Helper()
	eventually(t, func() error {
		out, err := c.Nodes[0].Output(t.Context(), "ip", "route", "show", "10.100.0.0/24")
		if err == nil && (out != "") != wanted {
			err = fmt.Errorf("the route to a node is %q, wanted: %v", out, wanted)
		}
		return err
	})
}

// awaitAnswer waits until a pod is among those that answer for the Service.
func (c cluster) awaitAnswer(t *testing.T, name string) {
	t.Helper()
	eventually(t, func() error {
		reply, err := c.Client.Ask(t.Context(), c.VIPs[0])
		if err == nil && reply.Name != name {
			err = fmt.Errorf("answered by %s, not by %s", reply.Name, name)
		}
		return err
	})
}

// TestIPTablesFails has iptables-restore fail, hang, and wait for a lock, one after the
// other, while an endpoint comes. What is programmed goes on working, and the change is
// made as soon as that can be.
func TestIPTablesFails(t *testing.T) {
	dir := wrapIPTables(t)
	c := newCluster(t, 1, "iptables")
	tr := traffic.Start(t, c.sources...)
	node := c.Nodes[0]
	for i, tt := range []struct {
		name string
		// begin breaks it, and returns what mends it.
		begin func(t *testing.T) (mend func())
		says  string // in the log
	}{
		{"fails", func(t *testing.T) func() { return breakRestore(t, dir, "exit 4") }, "sync failed, will be tried again"},
		{"hangs", func(t *testing.T) func() {
			mend := breakRestore(t, dir, "echo $$ >>"+dir+"/hung; exec sleep 3600")
			return func() {
				c.awaitHung(t)
				mend()
			}
		}, ""},
		{"locked", func(t *testing.T) func() { return holdLock(t, node) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			mend := tt.begin(t)
			name := fmt.Sprintf("late-%d", i)
			c.Web = append(c.Web, labtest.AddPod(t, c.Lab, node, name))
			if err := c.Apply(lab.Slices(c.Service, c.Web...)...); err != nil {
				t.Fatal(err)
			}
			tr.GoOn(t)
			time.Sleep(size(time.Second, 12*time.Second)) // longer than iptables waits for the lock
			tr.GoOn(t)
			mend()
			c.awaitAnswer(t, name)
			if log, err := node.ProxyLog(); err != nil || !strings.Contains(log, tt.says) {
				t.Errorf("no %q in the log (%v):\n%s", tt.says, err, log)
			}
		})
	}
	tr.End(t)
}

// awaitHung waits, at the whole size, until the proxy has ended what hangs. Else whoever
// mends it does that.
func (c cluster) awaitHung(t *testing.T) {
	t.Helper()
	if !*full {
		return
	}
	took := eventually(t, func() error {
		if n := metric(t, c.Nodes[0], proxyMetrics, `fairlead_iptables_hung_total{ip_family="IPv4"}`); n == 0 {
			return errors.New("no iptables-restore that hangs was ended")
		}
		return nil
	})
	t.Logf("the one that hung was ended after %s more", took.Round(time.Second))
}

// wrapIPTables has the proxies find commands in a folder, which are the machine's own
// unless something is in the file broken.
func wrapIPTables(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(name + "-legacy" + verb)
			if err != nil {
				t.Fatal(err)
			}
			script := fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", path)
			if verb == "-restore" {
				script = fmt.Sprintf("#!/bin/sh\n[ -e %[1]s/broken ] && . %[1]s/broken\nexec %[2]s \"$@\"\n", dir, path)
			}
			if err := os.WriteFile(filepath.Join(dir, name+verb), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return dir
}

// breakRestore has each iptables-restore do something else. What hangs is ended by the
// mending, as an operator does it.
func breakRestore(t *testing.T, dir, script string) (mend func()) {
	t.Helper()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte(script+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(broken); err != nil {
			t.Fatal(err)
		}
		hung, _ := os.ReadFile(filepath.Join(dir, "hung")) // none: nothing hangs
		for _, pid := range slices.Collect(strings.FieldsSeq(string(hung))) {
			_ = exec.Command("kill", "-9", pid).Run()
		}
	}
}

// holdLock has another program hold the lock of xtables, which each node of a lab has
// for itself.
func holdLock(t *testing.T, n *lab.Node) (release func()) {
	t.Helper()
	file, err := os.OpenFile(filepath.Join(filepath.Dir(n.Manifests()), "xtables.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return func() { _ = file.Close() }
}
