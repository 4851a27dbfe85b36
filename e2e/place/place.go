// Package place gives container runtimes a place in a node of a test, as if that
// were a machine of its own: they keep what they have where others of this machine
// keep theirs.
package place

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Place is mount and process namespaces in a node. All that is started in it ends
// with the test, also if that is killed.
type Place struct {
	node *netns.NS
	pid  string // a process in it
}

// New has a script in shell make the mounts.
func New(t *testing.T, node *netns.NS, mounts string) *Place {
	t.Helper()
	unshare := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-e", "-c", mounts+"\necho ready\nexec cat")
	unshare.Stderr = os.Stderr
	if _, err := unshare.StdinPipe(); err != nil { // which ends with us, and so cat does
		t.Fatal(err)
	}
	out, err := unshare.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Do(unshare.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unshare.Process.Kill(), unshare.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("namespaces for a runtime: %q, %v", line, err)
	}
	pid := unshare.Process.Pid
	child, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	return &Place{node, strings.TrimSpace(string(child))}
}

// command is a command in the place, to be run in the node.
func (p *Place) command(args ...string) []string {
	return append([]string{"nsenter", "--target", p.pid, "--mount", "--pid"}, args...)
}

// Run runs a command and returns what it printed.
func (p *Place) Run(t *testing.T, args ...string) string {
	t.Helper()
	command := p.command(args...)
	return p.node.RunT(t, command[0], command[1:]...)
}

// Start runs a command that goes on, and returns how to wait for its end.
func (p *Place) Start(t *testing.T, args ...string) (wait func() error) {
	t.Helper()
	command := p.command(args...)
	process := exec.CommandContext(t.Context(), command[0], command[1:]...)
	var out strings.Builder
	process.Stdout, process.Stderr = &out, &out
	if err := p.node.Do(process.Start); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var failed error
	go func() {
		defer close(ended)
		failed = process.Wait()
	}()
	t.Cleanup(func() {
		_ = process.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s printed:\n%s", args[0], out.String())
		}
	})
	return func() error {
		<-ended
		return failed
	}
}
