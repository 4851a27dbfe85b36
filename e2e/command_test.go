package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
)

func TestUsage(t *testing.T) {
	empty := t.TempDir()
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no nodes":       {[]string{"up", "--nodes", "0"}, "make 0 nodes: allowed are 1 to 50"},
		"too many nodes": {[]string{"demo", "--nodes", "51"}, "make 51 nodes: allowed are 1 to 50"},
		"output":         {[]string{"demo", "-o", "yaml"}, `print output as "yaml": allowed are text and json`},
		"no programs":    {[]string{"demo", "--bin-dir", empty}, "find program fairlead in " + empty + ": run make build first"},
		"id":             {[]string{"up", "--id", "../x"}, `name lab "../x": allowed are lower-case letters, digits and -, 31 at most`},
		"exec":           {[]string{"exec", "web-1", "true"}, "exec wants one pod or node, then -- and a command"},
		"flag":           {[]string{"demo", "--fast"}, "unknown flag: --fast"},
		"command":        {[]string{"dance"}, `unknown command "dance" for "fairlead-lab"`},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, test.args...).wantError(t, 2, "fairlead-lab: "+test.want)
		})
	}
}

func TestMachineLacks(t *testing.T) {
	t.Run("root", func(t *testing.T) {
		cmd := exec.Command(labProgram(t), "demo")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		finish(t, cmd).wantError(t, 2, "fairlead-lab: make network namespaces: this needs root")
	})
	t.Run("iptables", func(t *testing.T) {
		cmd := exec.Command(labProgram(t), "demo")
		cmd.Env = []string{"PATH=" + t.TempDir()}
		finish(t, cmd).wantError(t, 2, "fairlead-lab: find program iptables-restore: install the package iptables")
	})
}

func TestUpExecDown(t *testing.T) {
	id := fmt.Sprintf("test-%d-up", os.Getpid())
	t.Cleanup(func() {
		if err := lab.Remove(id); err != nil {
			t.Error(err)
		}
	})
	if o := run(t, "up", "--id", id); o.code != 0 {
		t.Fatalf("up: %+v", o)
	}
	state := stateOf(t, id)
	t.Run("twice", func(t *testing.T) {
		o := run(t, "up", "--id", id)
		if o.code != 1 || !strings.Contains(o.stdout, "make lab "+id+": there is one of this name") {
			t.Errorf("%+v", o)
		}
	})
	t.Run("exec passes everything through", func(t *testing.T) {
		cmd := exec.Command(labProgram(t), "exec", "--id", id, "client-1", "--", "sh", "-c", "cat; echo oops >&2; exit 7")
		cmd.Stdin = strings.NewReader("hello")
		if o := finish(t, cmd); (o != outcome{7, "hello", "oops\n"}) {
			t.Errorf("%+v", o)
		}
	})
	t.Run("exec is in the pod", func(t *testing.T) {
		o := run(t, "exec", "--id", id, "client-1", "--", "ip", "-br", "address", "show", "eth0")
		if !strings.Contains(o.stdout, "10.244.1.2/24 fd00:10:244:1::2/64") {
			t.Errorf("%+v", o)
		}
	})
	t.Run("exec is on the node", func(t *testing.T) {
		o := run(t, "exec", "--id", id, "node-2", "--", "ip", "-br", "address", "show", "eth0")
		if !strings.Contains(o.stdout, "192.168.244.12/24 fd00:192:168:244::12/64") {
			t.Errorf("%+v", o)
		}
	})
	t.Run("exec nowhere", func(t *testing.T) {
		run(t, "exec", "--id", id, "web-9", "--", "true").
			wantError(t, 2, "fairlead-lab: find web-9: lab "+id+" has no pod or node of this name")
	})
	t.Run("ask", func(t *testing.T) { askInside(t, id) })
	t.Run("status", func(t *testing.T) {
		o := run(t, "status")
		if o.code != 0 || !strings.Contains(o.stdout, "lab "+id+", mode auto\n  node-1          192.168.244.11, fd00:192:168:244::11\n    client-1      10.244.1.2, fd00:10:244:1::2\n") {
			t.Errorf("%+v", o)
		}
	})
	t.Run("a proxy that ended is told of", func(t *testing.T) {
		kill(t, state.Nodes[1].Proxy)
		o := run(t, "exec", "--id", id, "client-1", "--", "true")
		if o.code != 0 || !strings.HasPrefix(o.stderr, "fairlead-lab: proxy of node-2 ended, its log ends:\n") {
			t.Errorf("%+v", o)
		}
	})
	t.Run("down", func(t *testing.T) {
		if o := run(t, "down", "--id", id); (o != outcome{0, "lab " + id + " is gone\n", ""}) {
			t.Errorf("%+v", o)
		}
		checkGone(t, state)
		if _, err := os.Lstat(filepath.Join(lab.Root, id)); !os.IsNotExist(err) {
			t.Errorf("directory is left: %v", err)
		}
		if o := run(t, "down", "--id", id); o.code != 2 {
			t.Errorf("down twice: %+v", o)
		}
	})
}

// askInside asks the virtual IP as a user does who follows the hints of up.
func askInside(t *testing.T, id string) {
	for _, network := range lab.Networks {
		o := run(t, "exec", "--id", id, "client-1", "--", labProgram(t), "ask", "-n", "3", network, "10.96.0.10:80")
		var names []string
		for line := range strings.Lines(o.stdout) {
			var reply echo.Reply
			if err := json.Unmarshal([]byte(line), &reply); err != nil {
				t.Fatalf("%v in %+v", err, o)
			}
			names = append(names, reply.Name)
		}
		slices.Sort(names)
		if !slices.Equal(names, []string{"web-1", "web-2", "web-3"}) {
			t.Errorf("%s answered by %v: %+v", network, names, o)
		}
	}
}

func stateOf(t *testing.T, id string) lab.State {
	t.Helper()
	labs := list(t)
	i := slices.IndexFunc(labs, func(s lab.State) bool { return s.ID == id })
	if i < 0 {
		t.Fatalf("lab %s is not up", id)
	}
	return labs[i]
}

// kill kills a process that may be a child of no test, and waits for its end.
func kill(t *testing.T, p lab.Process) {
	t.Helper()
	pidfd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Fatalf("process %d does not end: %v", p.PID, err)
	}
}
