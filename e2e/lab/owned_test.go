package lab_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
)

// owned is what a lab owns on the machine, found by looking at the machine.
type owned struct {
	dir       string
	mounts    []string
	processes []int // pidfds
}

// ownedBy finds mounts below the lab's directory and processes in namespaces
// that are bound there. Other tests may sweep at any time: what is gone between
// two looks is left out.
func ownedBy(t *testing.T, id string) owned {
	t.Helper()
	o := owned{dir: filepath.Join(lab.Root, id)}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	namespaces := map[uint64]bool{}
	for line := range strings.Lines(string(mounts)) {
		point := strings.Fields(line)[4] // proc_pid_mountinfo(5)
		var st unix.Stat_t
		if strings.HasPrefix(point, o.dir+"/") && unix.Stat(point, &st) == nil {
			o.mounts = append(o.mounts, point)
			namespaces[st.Ino] = true
		}
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		var st unix.Stat_t
		if unix.Stat(link, &st) == nil && namespaces[st.Ino] {
			o.addProcess(t, filepath.Base(filepath.Dir(filepath.Dir(link))))
		}
	}
	return o
}

func (o *owned) addProcess(t *testing.T, pid string) {
	t.Helper()
	n, err := strconv.Atoi(pid)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(n, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	o.processes = append(o.processes, fd)
}

// gone checks that nothing of it is left.
func (o owned) gone(t *testing.T) {
	t.Helper()
	if _, err := os.Lstat(o.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory %s is left (%v)", o.dir, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), o.dir+"/") {
		t.Errorf("mounts below %s are left", o.dir)
	}
	for _, fd := range o.processes {
		// A pidfd becomes readable when its process ends.
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); n != 1 || err != nil {
			t.Errorf("a process is left (%v)", err)
		}
	}
}
