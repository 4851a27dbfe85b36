// Package smalldisk gives a test a disk that is soon full and goes with it, also by
// SIGKILL.
package smalldisk

import (
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// variable is set in the environment of the process that has a mount namespace of its
// own, to where the disk is to be mounted.
const variable = "FAIRLEAD_TEST_SMALL_DISK"

// Run has try do what the test is for. This binary runs the test that calls it, which is
// no subtest, once more, in a mount namespace of its own; there dir is a disk of that size,
// such as "64k", of tmpfs.
func Run(t *testing.T, size string, try func(t *testing.T, dir string)) {
	t.Helper()
	if dir := os.Getenv(variable); dir != "" {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
		try(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
