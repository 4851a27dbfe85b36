// Package link is what attaching pods asks of the kernel: network namespaces
// and, in each, interfaces, addresses, routes and sysctls. Every verb is one or
// two netlink messages on a socket that was opened inside its namespace, so no
// thread has to stay there and order of calls is all that a caller thinks of.
//
// It decides nothing: what a pod gets comes from cni and its modes, errors go
// back to them. Among what deals with pods it is the only importer of netlink.
package link

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	// ErrNoNamespace says that a path does not lead to a network namespace, or
	// no longer does.
	ErrNoNamespace = errors.New("no such network namespace")
	// ErrNoDevice says that a namespace has no such interface.
	ErrNoDevice = errors.New("no such interface")
)

// NS is a network namespace, held open. It is for one goroutine.
type NS struct {
	file    netns.NsHandle
	own     bool // the calling thread is in it
	netlink *netlink.Handle
	raw     *nl.SocketHandle // for requests that netlink has no call for; nil until the first
	lock    *os.File         // nil until the first Lock
}

// Host opens the network namespace of the calling thread: the node's.
func Host() (*NS, error) {
	file, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of this process: %w", err)
	}
	return open(file, true)
}

// Open opens the network namespace at path, as a runtime names a pod's. The
// error wraps ErrNoNamespace if there is none.
func Open(path string) (*NS, error) {
	file, err := netns.GetFromPath(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open %s: %w", path, ErrNoNamespace)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	if kind, err := unix.IoctlRetInt(int(file), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		_ = file.Close()
		return nil, fmt.Errorf("open %s: %w", path, ErrNoNamespace)
	}
	ns, err := open(file, false)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return ns, nil
}

// open owns file from here on.
func open(file netns.NsHandle, own bool) (*NS, error) {
	ns := &NS{file: file, own: own}
	handle, err := netlink.NewHandleAt(ns.target(), unix.NETLINK_ROUTE)
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	ns.netlink = handle
	return ns, nil
}

// target is where netlink has to go for a socket: nowhere if it is there.
func (ns *NS) target() netns.NsHandle {
	if ns.own {
		return netns.None()
	}
	return ns.file
}

// Close gives the namespace back, and the lock on it with it.
func (ns *NS) Close() {
	ns.netlink.Close()
	if ns.raw != nil {
		ns.raw.Close()
	}
	if ns.lock != nil {
		_ = ns.lock.Close()
	}
	_ = ns.file.Close() // opened for reading: there is nothing to lose
}

// Same reports whether both are the same namespace.
func (ns *NS) Same(other *NS) bool { return ns.file.Equal(other.file) }

// do runs f on a thread that is inside the namespace: the files below
// /proc/sys/net are those of the namespace of the thread that opens them.
func (ns *NS) do(f func() error) error {
	if ns.own {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		return fmt.Errorf("open the network namespace of this process: %w", err)
	}
	defer func() { _ = home.Close() }()
	if err := netns.Set(ns.file); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if back := netns.Set(home); back != nil {
		// Locked once more than it is unlocked: this thread, which is in the
		// wrong namespace, runs no other goroutine ever again.
		runtime.LockOSThread()
		return errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
	}
	return err
}

// request starts a netlink message that netlink itself cannot make.
func (ns *NS) request(kind, flags int) (*nl.NetlinkRequest, error) {
	if ns.raw == nil {
		socket, err := nl.GetNetlinkSocketAt(ns.target(), netns.None(), unix.NETLINK_ROUTE)
		if err != nil {
			return nil, fmt.Errorf("open netlink socket: %w", err)
		}
		// The kernel then says in words what it did not like. Kernels before
		// 4.12 cannot, and their errors stay as short as they are.
		_ = socket.SetExtAck(true)
		ns.raw = &nl.SocketHandle{Socket: socket}
	}
	request := nl.NewNetlinkRequest(kind, flags)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: ns.raw}
	return request, nil
}
