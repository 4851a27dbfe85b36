// Package netns makes network namespaces for tests and for the lab.
//
// A namespace made here has no name anywhere: it lives as long as the file
// descriptor (or a process inside it) does. When the test dies, also by
// SIGKILL, the kernel takes the namespace and everything in it away, so there
// is nothing to sweep. The lab, whose namespaces must outlive a process, binds
// them to a path itself (see e2e/lab).
//
// It must not be imported by the product: cni/link enters namespaces for pods.
package netns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/cgroup"
)

// NS is one network namespace, held open.
type NS struct {
	handle netns.NsHandle
	cgroup *cgroup.Cgroup // nil: any
}

// New makes an empty network namespace (lo is there and down).
func New() (*NS, error) {
	type result struct {
		handle netns.NsHandle
		err    error
	}
	made := make(chan result)
	go func() {
		// The thread is not unlocked: it now belongs to the new namespace, and
		// the runtime ends a thread whose goroutine ends while locked to it.
		runtime.LockOSThread()
		handle, err := netns.New()
		made <- result{handle, err}
	}()
	r := <-made
	if r.err != nil {
		return nil, fmt.Errorf("make network namespace: %w", r.err)
	}
	return &NS{handle: r.handle}, nil
}

// Open returns the namespace bound at path (/run/netns/NAME, /proc/PID/ns/net).
func Open(path string) (*NS, error) {
	handle, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return &NS{handle: handle}, nil
}

// TB is the part of testing.TB that this package needs; naming it here keeps
// package testing out of the lab's binary.
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(f func())
	Context() context.Context
}

// NewT is New for a test: it ends the test on failure and closes the namespace
// when the test ends.
func NewT(t TB) *NS {
	t.Helper()
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.removeRecords()
		_ = ns.Close()
	})
	return ns
}

// removeRecords removes what the plugin keeps on /run of the pods of a node that
// the namespace was (see cni/filter): it is there as long as pods are.
func (ns *NS) removeRecords() {
	_ = ns.Do(func() error {
		socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(socket) }()
		cookie, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		if err != nil {
			return err
		}
		return os.RemoveAll(fmt.Sprintf("/run/fairlead/filter-%d", cookie))
	})
}

// Handle is for netlink.NewHandleAt. It is valid until Close.
func (ns *NS) Handle() netns.NsHandle { return ns.handle }

// Path names the namespace for this process and, while this process lives, for
// every other one: it is what CNI_NETNS wants.
func (ns *NS) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(ns.handle))
}

// Close gives the descriptor back. The namespace goes when nothing else holds it.
func (ns *NS) Close() error { return ns.handle.Close() }

// Join makes whoever enters the namespace by Do enter the cgroup too. It must not be
// called while Do is.
func (ns *NS) Join(c *cgroup.Cgroup) { ns.cgroup = c }

// Do runs f on a thread that is inside the namespace. Sockets and processes
// made by f itself (not by goroutines that it starts) belong to the namespace
// for all their life. The thread ends with f: a process that f starts with
// Pdeathsig would be killed then.
func (ns *NS) Do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: see New
		if err := netns.Set(ns.handle); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		if ns.cgroup != nil {
			if err := ns.cgroup.Enter(); err != nil {
				done <- fmt.Errorf("enter cgroup: %w", err)
				return
			}
			defer func() { _ = ns.cgroup.Leave() }()
		}
		done <- f()
	}()
	return <-done
}

// Output runs a command inside the namespace and returns what it printed on
// both outputs. The error carries that text too.
func (ns *NS) Output(ctx context.Context, name string, args ...string) (string, error) {
	var out []byte
	err := ns.Do(func() (err error) {
		out, err = exec.CommandContext(ctx, name, args...).CombinedOutput()
		return err
	})
	if err != nil {
		return string(out), fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return string(out), nil
}

// RunT runs a command inside the namespace, ends the test if it fails, and
// returns what it printed.
func (ns *NS) RunT(t TB, name string, args ...string) string {
	t.Helper()
	out, err := ns.Output(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
