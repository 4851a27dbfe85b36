package e2e

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// outcome is what a finished command leaves.
type outcome struct {
	code           int
	stdout, stderr string
}

// run runs fairlead-lab to its end.
func run(t *testing.T, args ...string) outcome {
	t.Helper()
	return finish(t, exec.CommandContext(t.Context(), labProgram(t), args...))
}

func labProgram(t *testing.T) string { return filepath.Join(programs.Dir(t), "fairlead-lab") }

func finish(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// wantError checks that a command ended with a status and one clear line.
func (o outcome) wantError(t *testing.T, code int, line string) {
	t.Helper()
	if o.code != code || o.stdout != "" || strings.TrimSpace(o.stderr) != line {
		t.Errorf("status %d, stdout %q, stderr %q\nwant status %d and %q", o.code, o.stdout, o.stderr, code, line)
	}
}
