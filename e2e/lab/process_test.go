package lab

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProcessRunning(t *testing.T) {
	self := processOf(os.Getpid())
	if !self.Running() {
		t.Error("this process does not run")
	}
	for name, other := range map[string]Process{
		"none":         {},
		"earlier one":  {PID: self.PID, Start: self.Start - 1, Boot: self.Boot},
		"earlier boot": {PID: self.PID, Start: self.Start, Boot: "before"},
	} {
		if other.Running() {
			t.Errorf("%s: %+v runs", name, other)
		}
	}
}

// A name with parentheses and spaces must not move the fields of /proc/PID/stat,
// and a process that nobody has waited for has ended all the same.
func TestProcessRunsUntilItEnds(t *testing.T) {
	cat := t.TempDir() + "/c) a (t"
	path, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path, cat); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(cat)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := processOf(cmd.Process.Pid)
	if !p.Running() {
		t.Errorf("%+v does not run", p)
	}
	if err := stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := stdout.Read(make([]byte, 1)); n != 0 {
		t.Fatalf("read %d, %v", n, err)
	}
	// WNOWAIT: wait until it has ended, and leave it a zombie.
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("a zombie runs")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Error("it runs after its end")
	}
}
