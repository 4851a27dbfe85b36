package e2e

import (
	"encoding/json"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/lab"
)

// report is the document of fairlead-lab demo -o json.
type report struct {
	OK     bool `json:"ok"`
	Checks []struct {
		Name   string `json:"name"`
		OK     bool   `json:"ok"`
		Detail string `json:"detail"`
	} `json:"checks"`
	Spread map[string]map[string]int `json:"spread"`
}

func TestDemo(t *testing.T) {
	for _, nodes := range []string{"1", "2", "3"} {
		t.Run(nodes+" nodes", func(t *testing.T) { demo(t, "--nodes", nodes) })
	}
	t.Run("iptables", func(t *testing.T) { demo(t, "--mode", "iptables") })
}

// demo runs the demo and checks its document.
func demo(t *testing.T, args ...string) {
	t.Helper()
	o := run(t, append([]string{"demo", "-o", "json"}, args...)...)
	if o.code != 0 {
		t.Errorf("exit status %d: %s", o.code, o.stderr)
	}
	decoder := json.NewDecoder(strings.NewReader(o.stdout))
	decoder.DisallowUnknownFields()
	var r report
	if err := decoder.Decode(&r); err != nil {
		t.Fatalf("%v in %s", err, o.stdout)
	}
	if _, err := decoder.Token(); err != io.EOF {
		t.Errorf("more than one object on standard output: %s", o.stdout)
	}
	if !r.OK || len(r.Checks) < 15 {
		t.Errorf("ok %t with %d checks", r.OK, len(r.Checks))
	}
	for _, c := range r.Checks {
		if !c.OK || c.Name == "" || c.Detail == "" {
			t.Errorf("check %+v", c)
		}
	}
	each := map[string]int{"web-1": 4, "web-2": 4, "web-3": 4}
	want := map[string]map[string]int{"tcp": each, "udp": each, "sctp": each}
	if diff := cmp.Diff(want, r.Spread); diff != "" {
		t.Errorf("spread (-want +got):\n%s", diff)
	}
}

// A proxy that does not live is a failed check with its own words, in time.
func TestDemoFails(t *testing.T) {
	broken := withProxy(t, "echo no rules today >&2\nexit 3")
	o := run(t, "demo", "-o", "json", "--bin-dir", broken)
	var r report
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil {
		t.Fatalf("%v in %+v", err, o)
	}
	last := r.Checks[len(r.Checks)-1]
	want := regexp.MustCompile(`^proxy of node-\d ended \(exit status 3\), its log ends:\nno rules today$`)
	if o.code != 1 || r.OK || last.OK || !want.MatchString(last.Detail) {
		t.Errorf("status %d, report %+v", o.code, r)
	}
	if diff := cmp.Diff(map[string]map[string]int{"tcp": {}, "udp": {}, "sctp": {}}, r.Spread); diff != "" {
		t.Errorf("spread (-want +got):\n%s", diff)
	}
}

func TestDemosSideBySide(t *testing.T) {
	for _, name := range []string{"one", "other"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			demo(t)
		})
	}
}

func TestDemoAfterKill(t *testing.T) {
	cmd := exec.Command(labProgram(t), "demo")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := awaitLab(t, cmd.Process.Pid, func(s lab.State) bool { return len(s.Pods) == 5 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	demo(t)
	checkGone(t, left)
}

func TestDemoInterrupted(t *testing.T) {
	cmd := exec.Command(labProgram(t), "demo", "-o", "json")
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	left := awaitLab(t, cmd.Process.Pid, func(s lab.State) bool { return len(s.Pods) == 5 })
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 2 || stdout.String() != "" {
		t.Errorf("exit status %d, standard output %q", code, &stdout)
	}
	checkGone(t, left)
}

// awaitLab waits until the lab that a process builds is as far as wanted.
func awaitLab(t *testing.T, owner int, far func(lab.State) bool) lab.State {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) {
		for _, s := range list(t) {
			if s.Owner.PID == owner && far(s) {
				return s
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the lab does not get that far")
	return lab.State{}
}

// checkGone checks that a lab and its processes are no more.
func checkGone(t *testing.T, s lab.State) {
	t.Helper()
	if slices.ContainsFunc(list(t), func(other lab.State) bool { return other.ID == s.ID }) {
		t.Errorf("lab %s is left", s.ID)
	}
	for _, n := range s.Nodes {
		if n.Proxy.Running() {
			t.Errorf("proxy of %s is left", n.Name)
		}
	}
	for _, p := range s.Pods {
		if p.Server.Running() {
			t.Errorf("server of %s is left", p.Name)
		}
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
