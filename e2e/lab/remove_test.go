package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

// builder is fairlead-lab up in a process of its own.
type builder struct {
	id     string
	cmd    *exec.Cmd
	output bytes.Buffer
}

func startUp(t *testing.T, id string) *builder {
	t.Helper()
	b := &builder{id: id, cmd: exec.Command(filepath.Join(programs.Dir(t), "fairlead-lab"), "up", "--id", id)}
	b.cmd.Stdout, b.cmd.Stderr = &b.output, &b.output
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Remove(id); err != nil {
			t.Error(err)
		}
	})
	return b
}

// signalWhenMade sends a signal as soon as the lab has a namespace of this name,
// and waits for the builder to end.
func (b *builder) signalWhenMade(t *testing.T, sig os.Signal, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err := os.Lstat(filepath.Join(lab.Root, b.id, "netns", name)); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("no namespace %s: %s", name, &b.output)
		}
		time.Sleep(time.Millisecond)
	}
	if err := b.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := b.cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("ended with %v: %s", err, &b.output)
	}
}

// moments of a lab's making, by the namespace that is made.
var moments = []string{"underlay", "node-1", "node-2", "client-1", "web-2"}

func TestInterruptWhileBuilding(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		for _, moment := range moments {
			t.Run(fmt.Sprintf("%s at %s", sig, moment), func(t *testing.T) {
				b := startUp(t, fmt.Sprintf("test-%d-int", os.Getpid()))
				b.signalWhenMade(t, sig, moment)
				if code := b.cmd.ProcessState.ExitCode(); code != 2 {
					t.Errorf("exit status %d: %s", code, &b.output)
				}
				owned := ownedBy(t, b.id)
				owned.gone(t)
			})
		}
	}
}

func TestSweepAfterKill(t *testing.T) {
	living := labtest.New(t, lab.Options{Nodes: 1, BinDir: programs.Dir(t)})
	pod := labtest.AddPod(t, living, living.Nodes[0], "pod")
	for _, moment := range moments {
		t.Run(moment, func(t *testing.T) {
			b := startUp(t, fmt.Sprintf("test-%d-kill", os.Getpid()))
			b.signalWhenMade(t, syscall.SIGKILL, moment)
			if status := b.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() {
				t.Fatalf("it was too fast: %s", &b.output)
			}
			if slices.ContainsFunc(list(t), func(s lab.State) bool { return s.ID == b.id }) {
				t.Error("a lab without owner is listed")
			}
			owned := ownedBy(t, b.id)
			if err := lab.Sweep(); err != nil {
				t.Fatal(err)
			}
			owned.gone(t)
		})
	}
	askAll(t, pod, pod)
}

// What a builder leaves that is killed between two system calls.
func TestSweepHalfMade(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"claimed":          {},
		"state half saved": {".state.json.new": `{"id":`},
		"no namespace":     {"state.json": `{"id":"x","owner":{"pid":1,"start":1,"boot":"b"}}`},
		"not yet bound":    {"state.json": `{}`, "netns/underlay": ""},
		"of earlier boot":  {"state.json": `{"kept":true,"owner":{"pid":1,"start":1,"boot":"b"}}`, "netns/node-1": ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := halfMade(t, files)
			if err := lab.Sweep(); err != nil {
				t.Fatal(err)
			}
			owned{dir: dir}.gone(t)
		})
	}
}

// halfMade makes a lab's directory of files. It is made elsewhere and moved, since
// any other test that sweeps may do so at any time.
func halfMade(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(lab.Root, fmt.Sprintf("test-%d-half", os.Getpid()))
	elsewhere := lab.Root + "-" + filepath.Base(dir)
	t.Cleanup(func() { _ = os.RemoveAll(elsewhere) })
	if err := os.MkdirAll(filepath.Join(elsewhere, "netns"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, content := range files {
		if err := os.WriteFile(filepath.Join(elsewhere, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(elsewhere, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestKeptLabOutlivesItsBuilder(t *testing.T) {
	b := startUp(t, fmt.Sprintf("test-%d-kept", os.Getpid()))
	if err := b.cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &b.output)
	}
	if err := lab.Sweep(); err != nil {
		t.Fatal(err)
	}
	owned := ownedBy(t, b.id)
	if len(owned.mounts) != 10 || len(owned.processes) != 9 {
		t.Errorf("%d mounts and %d processes, want 8 namespaces and 2 BPF file systems, 2 programs for each of 2 nodes and 5 servers",
			len(owned.mounts), len(owned.processes))
	}
	i := slices.IndexFunc(list(t), func(s lab.State) bool { return s.ID == b.id })
	if i < 0 {
		t.Fatal("it is not listed")
	}
	if errs := list(t)[i].ProxyErrors(); errs != nil {
		t.Error(errs)
	}
	if err := lab.Remove(b.id); err != nil {
		t.Fatal(err)
	}
	owned.gone(t)
}

// A process that ignores SIGTERM is killed, one that was started by somebody
// else in a pod is ended too.
func TestRemoveEndsStubbornProcesses(t *testing.T) {
	l := labtest.New(t, lab.Options{Nodes: 1, BinDir: programs.Dir(t)})
	pod := labtest.AddPod(t, l, l.Nodes[0], "pod")
	stubborn := exec.Command("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 60; done")
	out, err := stubborn.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pod.NS().Do(stubborn.Start); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	owned := ownedBy(t, l.ID)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	owned.gone(t)
	if err := stubborn.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("ended with %v", err)
	}
}

func list(t *testing.T) []lab.State {
	t.Helper()
	labs, err := lab.List()
	if err != nil {
		t.Fatal(err)
	}
	return labs
}
