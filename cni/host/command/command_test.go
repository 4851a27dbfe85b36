package command

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sh is a script with that input, which may take as long as a test may.
func sh(script, input string) Command {
	return Command{Name: "sh", Args: []string{"-c", script}, Input: Text(input), Within: time.Minute}
}

func TestRun(t *testing.T) {
	started := 0
	c := sh("cat; echo heard nothing >&2", "a\nb\n")
	c.Started = func(pid int) { started = pid }
	out, err := c.Run(t.Context())
	if err != nil || string(out) != "a\nb\n" || started == 0 {
		t.Errorf("printed %q, %v; process %d", out, err, started)
	}
	if out, err := (Command{Name: "cat", Within: time.Minute}).Run(t.Context()); err != nil || len(out) > 0 {
		t.Errorf("without input: printed %q, %v", out, err)
	}
}

func TestFailure(t *testing.T) {
	// It does not read its input, of which there is more than a pipe holds.
	_, err := sh("echo ' no such rule' >&2; exit 3", strings.Repeat("x", 1<<20)).Run(t.Context())
	if want := "sh: exit status 3: no such rule"; err == nil || err.Error() != want || ExitCode(err) != 3 {
		t.Errorf("error %v, exit code %d; want %s", err, ExitCode(err), want)
	}
	_, err = Command{Name: "/nonexistent/iptables", Within: time.Minute}.Run(t.Context())
	if !errors.Is(err, os.ErrNotExist) || ExitCode(err) != -1 {
		t.Errorf("error %v, exit code %d", err, ExitCode(err))
	}
	_, err = Command{Name: "no-such-iptables", Within: time.Minute}.Run(t.Context())
	if !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("error %v", err)
	}
}

// What hangs is ended with all that it has started, whether it reads or not, and
// also if something of it cannot be ended so.
func TestHangs(t *testing.T) {
	for name, script := range map[string]string{
		"itself":                "exec sleep 3600",
		"what it started":       "sleep 3600; true",
		"one that is elsewhere": "setsid sleep 3600 & echo $! >&3; wait",
	} {
		for _, input := range []int{0, 1 << 20} { // more than a pipe holds
			t.Run(name+" "+strconv.Itoa(input), func(t *testing.T) {
				left := filepath.Join(t.TempDir(), "left")
				c := sh("exec 3>"+left+"; "+script, strings.Repeat("x", input))
				c.Within = 300 * time.Millisecond
				var group int
				c.Started = func(pid int) { group = pid }
				t.Cleanup(func() { endLeft(t, left) })
				began := time.Now()
				_, err := c.Run(t.Context())
				if took := time.Since(began); !errors.Is(err, ErrHung) || took > 30*time.Second {
					t.Errorf("after %s: %v", took, err)
				}
				if !strings.Contains(err.Error(), "sh: not within 300ms: it hung and was ended") {
					t.Errorf("error: %v", err)
				}
				awaitGone(t, group)
			})
		}
	}
}

// endLeft ends the process that has left its group, and whose number is in a file.
func endLeft(t *testing.T, file string) {
	number, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := strconv.Atoi(string(bytes.TrimSpace(number))); err == nil {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// awaitGone waits until nobody runs any more in a process group.
func awaitGone(t *testing.T, group int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); running(t, group); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process group %d is still there", group)
		}
	}
}

// running says whether anybody in a process group has not ended, be it waited for or
// not: see proc_pid_stat(5), fields 3 and 5, behind the name in parentheses.
func running(t *testing.T, group int) bool {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		stat, _ := os.ReadFile(path) // it may be gone by now
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 2 && fields[0] != "Z" && fields[2] == strconv.Itoa(group) {
			return true
		}
	}
	return false
}

func TestRunEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := sh("exec sleep 3600", "")
	c.Started = func(int) { cancel() }
	if _, err := c.Run(ctx); err == nil || errors.Is(err, ErrHung) {
		t.Errorf("error: %v", err)
	}
}
