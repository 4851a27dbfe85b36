package lab_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

var programs labtest.Programs

func TestMain(m *testing.M) { os.Exit(programs.Run(m)) }

func TestPodsReachPodsWithTheirOwnAddress(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 3, BinDir: programs.Dir(t)})
	var pods []*lab.Pod
	for i, name := range []string{"a", "b", "c", "d"} {
		pods = append(pods, labtest.AddPod(t, l, l.Nodes[i%3], name))
	}
	for _, from := range pods {
		for _, to := range pods {
			askAll(t, from, to)
		}
	}
}

// askAll checks that a pod reaches another at each of its endpoints, and how the
// other sees it.
func askAll(t *testing.T, from, to *lab.Pod) {
	t.Helper()
	for _, at := range to.Endpoints() {
		reply, err := from.Ask(t.Context(), at)
		if err != nil {
			t.Errorf("%s asks %s: %v", from.Name, to.Name, err)
			continue
		}
		want := from.IPv4()
		if at.Addr.Addr().Is6() {
			want = from.IPv6()
		}
		if reply.Name != to.Name || reply.Client.Addr() != want || reply.Server != at.Addr {
			t.Errorf("%s asks %s at %v, got %+v", from.Name, to.Name, at, reply)
		}
	}
}

func TestNodeReachesPods(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 2, BinDir: programs.Dir(t)})
	pod := labtest.AddPod(t, l, l.Nodes[1], "pod")
	for _, n := range l.Nodes {
		for _, at := range pod.Endpoints() {
			if _, err := n.Ask(t.Context(), at); err != nil {
				t.Errorf("%s asks %v: %v", n.Name, at, err)
			}
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 2, BinDir: programs.Dir(t)})
	labtest.AddPod(t, l, l.Nodes[0], "one")
	labtest.AddPod(t, l, l.Nodes[1], "two")
	owned := ownedBy(t, l.ID)
	if len(owned.mounts) != 7 || len(owned.processes) < 6 { // more where a proxy runs iptables just now
		t.Fatalf("before: %d mounts and %d processes, want 5 namespaces and 2 BPF file systems, 2 programs for each of 2 nodes and 2 servers",
			len(owned.mounts), len(owned.processes))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	owned.gone(t)
	if err := l.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
}

func TestTwoLabsSideBySide(t *testing.T) {
	one, two := labtest.New(t, lab.Options{Nodes: 2, BinDir: programs.Dir(t)}), labtest.New(t, lab.Options{Nodes: 1, BinDir: programs.Dir(t)})
	a := labtest.AddPod(t, one, one.Nodes[0], "pod")
	b := labtest.AddPod(t, two, two.Nodes[0], "pod")
	if a.IPv4() != b.IPv4() {
		t.Fatalf("%s and %s: the labs do not use the same addresses", a.IPv4(), b.IPv4())
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	askAll(t, b, b)
}

// The kernel sends a server this signal when it answers a client that is gone, SCTP's
// above all.
func TestServersOutliveClients(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 1, BinDir: programs.Dir(t)})
	a, b := labtest.AddPod(t, l, l.Nodes[0], "a"), labtest.AddPod(t, l, l.Nodes[0], "b")
	for _, p := range l.State().Pods {
		if err := unix.Kill(p.Server.PID, unix.SIGPIPE); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond) // one that ends for that has ended by then
	if reply, err := a.Ask(t.Context(), b.Endpoints()[0]); err != nil || reply.Name != "b" {
		t.Errorf("%+v, %v", reply, err)
	}
}

func TestRemovePod(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 1, BinDir: programs.Dir(t)})
	other := labtest.AddPod(t, l, l.Nodes[0], "other")
	before, err := l.Nodes[0].Output(t.Context(), "ip", "-br", "link")
	if err != nil {
		t.Fatal(err)
	}
	pod := labtest.AddPod(t, l, l.Nodes[0], "pod")
	if err := l.RemovePod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	after, err := l.Nodes[0].Output(t.Context(), "ip", "-br", "link")
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("links of the node before:\n%s\nafter:\n%s", before, after)
	}
	again := labtest.AddPod(t, l, l.Nodes[0], "pod")
	askAll(t, other, again)
}

func TestAddPodRefusesName(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 1, BinDir: programs.Dir(t)})
	labtest.AddPod(t, l, l.Nodes[0], "pod")
	for name, want := range map[string]string{
		"pod":      "make pod pod: the lab has a node or pod of this name",
		"node-1":   "make pod node-1: the lab has a node or pod of this name",
		"Pod":      `make pod "Pod": a lowercase`,
		"../state": `make pod "../state": a lowercase`,
	} {
		if _, err := l.AddPod(t.Context(), l.Nodes[0], name); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: got error %v, want %s", name, err, want)
		}
	}
}

// A pod whose server cannot start is taken back: the address is free again, the
// name too, and the error has the server's own words.
func TestAddPodUndoes(t *testing.T) {
	broken := brokenPrograms(t)
	l := labtest.New(t, lab.Options{Nodes: 1, BinDir: broken})
	_, err := l.AddPod(t.Context(), l.Nodes[0], "pod")
	if err == nil || !strings.Contains(err.Error(), "no server today") {
		t.Errorf("got error %v", err)
	}
	if state := l.State(); len(state.Pods) != 0 {
		t.Errorf("pods %v", state.Pods)
	}
	bound, err := filepath.Glob(filepath.Join(lab.Root, l.ID, "netns", "*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(bound) != 2 {
		t.Errorf("namespaces %v, want underlay and node-1", bound)
	}
}

// brokenPrograms are the programs with a server that fails.
func brokenPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"fairlead", "fairlead-cni"} {
		if err := os.Symlink(filepath.Join(programs.Dir(t), program), filepath.Join(dir, program)); err != nil {
			t.Fatal(err)
		}
	}
	script := "#!/bin/sh\necho no server today >&2\nexit 1\n"
	if err := os.WriteFile(filepath.Join(dir, "fairlead-lab"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestGuardTellsWhichProxyEnded(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 2, BinDir: programs.Dir(t)})
	ctx, stop := l.Guard(t.Context())
	defer stop()
	if err := unix.Kill(l.State().Nodes[1].Proxy.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if err := context.Cause(ctx); !strings.HasPrefix(err.Error(), "proxy of node-2 ended (signal: killed), its log ends:\n") {
		t.Errorf("cause %q", err)
	}
	errs := l.State().ProxyErrors()
	if len(errs) != 1 || !strings.HasPrefix(errs[0].Error(), "proxy of node-2 ended, its log ends:\n") {
		t.Errorf("proxy errors %v", errors.Join(errs...))
	}
}
