// Package namespaces finds the network namespaces of this machine and their addresses,
// as far as they are to be seen from where it runs. It changes nothing, and is for the
// plugin and the proxy alike.
package namespaces

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace.
type Namespace struct {
	Path string // of a file that is it, as long as the first of Processes lives
	// Processes are those in it, by their first thread; none: it is bound to a file,
	// and whoever is in it is not to be seen.
	Processes []int
}

// bound is where container runtimes and ip-netns(8) bind namespaces to files.
var bound = []string{"/run/netns/*", "/run/docker/netns/*"}

// firstPIDs is the PID namespace whose processes are all that there are
// (PROC_PID_INIT_INO of linux/proc_ns.h).
const firstPIDs = "pid:[4026531836]"

// All finds the namespaces that processes are in, each once, and then those that are
// bound to files. The error says why there may be more of them; it is no reason not to
// use what was found.
func All() ([]Namespace, error) {
	var all list
	var hidden error
	if pids, err := os.Readlink("/proc/self/ns/pid"); err != nil || pids != firstPIDs {
		hidden = errors.New("not all processes of the node are to be seen from the container that looks")
	}
	processes, _ := filepath.Glob("/proc/[0-9]*") // the pattern is right
	for _, dir := range processes {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		err := all.add(filepath.Join(dir, "ns/net"), pid)
		if err != nil && hidden == nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESRCH) { // which has ended
			hidden = fmt.Errorf("process %d of the node may not be looked at: %w", pid, err)
		}
	}
	for _, pattern := range bound {
		files, _ := filepath.Glob(pattern)
		for _, path := range files {
			var fs unix.Statfs_t // of a namespace, and not of a file that one was bound to
			if unix.Statfs(path, &fs) == nil && fs.Type == unix.NSFS_MAGIC {
				_ = all.add(path, 0) // or it is gone
			}
		}
	}
	return all.found, hidden
}

// list has each namespace once.
type list struct {
	found []Namespace
	at    map[uint64]int // inode → index
}

// add adds the namespace at a path, with the process, if it is not 0, that is in it.
func (l *list) add(path string, pid int) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	i, known := l.at[st.Ino]
	if !known {
		if l.at == nil {
			l.at = map[uint64]int{}
		}
		i = len(l.found)
		l.at[st.Ino] = i
		l.found = append(l.found, Namespace{Path: path})
	}
	if pid != 0 {
		l.found[i].Processes = append(l.found[i].Processes, pid)
	}
	return nil
}

// Addrs are the addresses of all interfaces in the namespace at a path. The error wraps
// fs.ErrNotExist if it has gone.
func Addrs(path string) ([]netip.Addr, error) {
	file, err := netns.GetFromPath(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	handle, err := netlink.NewHandleAt(file, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	list, err := handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs, nil
}
