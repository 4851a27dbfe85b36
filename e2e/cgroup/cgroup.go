// Package cgroup makes cgroups (v2) for tests: BPF programs that are attached to
// one see the sockets made in it and no others.
//
// They are threaded (cgroups(7)): threads of one process can be in several. A
// socket belongs for all its life to the cgroup of the thread that made it.
//
// A cgroup does not go with its process. What tests that were killed have left is
// removed when others make some.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Cgroup is one cgroup.
type Cgroup struct {
	Path string
}

// prefix begins the names of all: it is followed by the number of the process.
const prefix = "fairlead-test-"

var made atomic.Int64 // makes names different

// New makes a cgroup for threads of this process, which begins empty.
func New() (*Cgroup, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	sweep(root)
	c := &Cgroup{filepath.Join(root, fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), made.Add(1)))}
	if err := os.Mkdir(c.Path, 0o755); err != nil {
		return nil, err
	}
	if err := c.write("cgroup.type", "threaded"); err != nil {
		return nil, errors.Join(err, os.Remove(c.Path))
	}
	return c, nil
}

// Root is where cgroup v2 is mounted.
func Root() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", err
	}
	if len(mounts) == 0 {
		return "", errors.New("no cgroup v2 file system is mounted")
	}
	return mounts[0].Mountpoint, nil
}

// Enter moves the calling thread, which should be locked to its goroutine.
func (c *Cgroup) Enter() error { return c.write("cgroup.threads", strconv.Itoa(unix.Gettid())) }

func (c *Cgroup) write(file, text string) error {
	return os.WriteFile(filepath.Join(c.Path, file), []byte(text), 0)
}

// Remove waits until the threads in it have ended, and removes the cgroup.
func (c *Cgroup) Remove() error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := os.Remove(c.Path)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Fatal(args ...any)
	Error(args ...any)
	Cleanup(f func())
}

// NewT is New for a test: the cgroup goes with it.
func NewT(t TB) *Cgroup {
	t.Helper()
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// sweep removes the cgroups of processes that have ended. One that is in use says
// so itself (EBUSY).
func sweep(root string) {
	left, _ := filepath.Glob(filepath.Join(root, prefix+"*"))
	for _, path := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), prefix), "-")
		if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(path)
		}
	}
}
