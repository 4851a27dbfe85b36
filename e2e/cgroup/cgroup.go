// Package cgroup makes cgroups (v2) for tests and for the lab: BPF programs that
// are attached to one see the sockets made in it and no others.
//
//	TOP            fairlead-lab, in the root: processes that use this package
//	TOP/NAME       threaded (cgroups(7)): any of their threads
//
// A socket belongs for all its life to the cgroup of the thread that made it, a
// process to that of the thread that started it.
//
// A cgroup does not go with its process. What tests that were killed have left is
// removed when others make some; a lab's is removed with the lab.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Cgroup is one cgroup.
type Cgroup struct {
	Path string
}

// Named is the cgroup of that name, which there need not be.
func Named(name string) (*Cgroup, error) {
	top, err := top()
	if err != nil {
		return nil, err
	}
	return &Cgroup{filepath.Join(top, name)}, nil
}

// Make makes the cgroup of that name, which begins empty.
func Make(name string) (*Cgroup, error) {
	c, err := Named(name)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(c.Path, 0o755); err != nil {
		return nil, err
	}
	if err := c.write("cgroup.type", "threaded"); err != nil {
		return nil, errors.Join(err, os.Remove(c.Path))
	}
	return c, nil
}

// Enter moves the calling thread, which should be locked to its goroutine.
func (c *Cgroup) Enter() error {
	if err := join(filepath.Dir(c.Path)); err != nil {
		return err
	}
	return c.write("cgroup.threads", strconv.Itoa(unix.Gettid()))
}

// Leave moves the calling thread back to the top. Threads that end need not, but
// Go's first thread never does.
func (c *Cgroup) Leave() error {
	top := Cgroup{filepath.Dir(c.Path)}
	return top.write("cgroup.threads", strconv.Itoa(unix.Gettid()))
}

func (c *Cgroup) write(file, text string) error {
	return os.WriteFile(filepath.Join(c.Path, file), []byte(text), 0)
}

// joining guards joined: a process goes to the top once. Again, and its threads
// would be taken out of where they are.
var (
	joining sync.Mutex
	joined  bool
)

// join moves this process to the top, whose threads may be spread below.
func join(top string) error {
	joining.Lock()
	defer joining.Unlock()
	if joined {
		return nil
	}
	err := os.WriteFile(filepath.Join(top, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	joined = err == nil
	return err
}

// top is where all cgroups of this package are.
func top() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", err
	}
	if len(mounts) == 0 {
		return "", errors.New("no cgroup v2 file system is mounted")
	}
	return filepath.Join(mounts[0].Mountpoint, "fairlead-lab"), nil
}

// Remove waits until the threads in it have ended, and removes the cgroup. It is
// no error if there is none.
func (c *Cgroup) Remove() error {
	for deadline := time.Now().Add(10 * time.Second); ; {
		err := os.Remove(c.Path)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Now().After(deadline):
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// RemoveAll removes the cgroups whose names begin with prefix.
func RemoveAll(prefix string) error {
	top, err := top()
	if err != nil {
		return nil // so there are none
	}
	found, err := filepath.Glob(filepath.Join(top, prefix+"*"))
	for _, path := range found {
		err = errors.Join(err, (&Cgroup{path}).Remove())
	}
	return err
}

// TB is the part of testing.TB that this package needs; naming it here keeps
// package testing out of the lab's binary.
type TB interface {
	Helper()
	Fatal(args ...any)
	Error(args ...any)
	Cleanup(f func())
}

// made makes the names of a test's cgroups different.
var made atomic.Int64

// NewT makes a cgroup for a test, which goes with it.
func NewT(t TB) *Cgroup {
	t.Helper()
	sweep()
	c, err := Make(fmt.Sprintf("test-%d.%d", os.Getpid(), made.Add(1)))
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

// sweep removes the cgroups of tests that have ended. One that is in use says so
// itself (EBUSY).
func sweep() {
	top, err := top()
	if err != nil {
		return
	}
	left, _ := filepath.Glob(filepath.Join(top, "test-*"))
	for _, path := range left {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), "test-"), ".")
		if _, err := os.Stat(filepath.Join("/proc", pid)); errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(path)
		}
	}
}
