// Package bpffs gives tests bpf file systems that go with them, also by SIGKILL.
package bpffs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// private is set in the environment of the process that has a mount namespace of
// its own.
const private = "FAIRLEAD_TEST_MOUNTS"

// Main runs the tests of a package in a mount namespace of their own: whatever
// they mount, the kernel unmounts when they end. It is for TestMain.
func Main(m interface{ Run() int }) {
	if os.Getenv(private) != "" {
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // the end of the thread that starts it would be its own: Pdeathsig
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), private+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "run tests in a mount namespace of their own:", err)
		os.Exit(1)
	}
	os.Exit(cmd.ProcessState.ExitCode())
}
