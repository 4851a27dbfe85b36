package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hook is a place in the kernel's socket calls, and what runs there.
type hook struct {
	name    string // of the program, and of the link's pin
	attach  ebpf.AttachType
	program *ebpf.Program
}

func (d *DataPath) hooks() []hook {
	p := d.programs
	return []hook{
		// What shows an application its peer goes first: until then one that was
		// translated would see its backend.
		{bpfProgSockRecvmsg4, ebpf.AttachCGroupUDP4Recvmsg, p.SockRecvmsg4},
		{bpfProgSockRecvmsg6, ebpf.AttachCGroupUDP6Recvmsg, p.SockRecvmsg6},
		{bpfProgSockGetpeername4, ebpf.AttachCgroupInet4GetPeername, p.SockGetpeername4},
		{bpfProgSockGetpeername6, ebpf.AttachCgroupInet6GetPeername, p.SockGetpeername6},
		{bpfProgSockRelease, ebpf.AttachCgroupInetSockRelease, p.SockRelease},
		{bpfProgSockConnect4, ebpf.AttachCGroupInet4Connect, p.SockConnect4},
		{bpfProgSockConnect6, ebpf.AttachCGroupInet6Connect, p.SockConnect6},
		{bpfProgSockSendmsg4, ebpf.AttachCGroupUDP4Sendmsg, p.SockSendmsg4},
		{bpfProgSockSendmsg6, ebpf.AttachCGroupUDP6Sendmsg, p.SockSendmsg6},
	}
}

// attachSockets puts the programs in the place of those of an earlier process, each
// in one step, or attaches them.
func (d *DataPath) attachSockets() error {
	cgroup, err := cgroupID(d.config.CgroupRoot)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(d.pin("links"), 0o700); err != nil {
		return err
	}
	for _, h := range d.hooks() {
		if err := h.attachAt(d.config.CgroupRoot, cgroup, d.pin("links", h.name)); err != nil {
			return fmt.Errorf("attach %s to %s: %w", h.name, d.config.CgroupRoot, err)
		}
	}
	return nil
}

func (h hook) attachAt(root string, cgroup uint64, pin string) error {
	old, err := link.LoadPinnedLink(pin, nil)
	if err == nil {
		defer func() { _ = old.Close() }()
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if old != nil && attachedTo(old, cgroup) {
		return old.Update(h.program)
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: root, Attach: h.attach, Program: h.program})
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	if old != nil { // to another cgroup, or to one that is gone
		if err := old.Unpin(); err != nil {
			return err
		}
	}
	return l.Pin(pin)
}

func attachedTo(l link.Link, cgroup uint64) bool {
	info, err := l.Info()
	return err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == cgroup
}

// socketsAttached looks whether every link is there and at the cgroup.
func (d *DataPath) socketsAttached() (bool, error) {
	cgroup, err := cgroupID(d.config.CgroupRoot)
	if err != nil {
		return false, err
	}
	for _, h := range d.hooks() {
		l, err := link.LoadPinnedLink(d.pin("links", h.name), nil)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		ok := attachedTo(l, cgroup)
		_ = l.Close()
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

// Leads says whether sockets that processes make are led: those of any of them. Of
// those that are not to be seen, which are none, it is so if all sockets are.
func (d *DataPath) Leads(processes []int) bool {
	return leadsAll(d.config.CgroupRoot) || slices.ContainsFunc(processes, d.isBelow)
}

// leadsAll says whether a cgroup is the root of all, which alone has no file
// cgroup.events (cgroups(7)).
func leadsAll(cgroup string) bool {
	_, err := os.Stat(filepath.Join(cgroup, "cgroup.events"))
	return errors.Is(err, os.ErrNotExist)
}

// isBelow says whether a process is in the cgroup or below.
func (d *DataPath) isBelow(process int) bool {
	root, err := findCgroupRoot()
	if err != nil {
		return false
	}
	wanted, err := cgroupID(d.config.CgroupRoot)
	if err != nil {
		return false
	}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", process)) // none: it has ended
	for line := range strings.Lines(string(text)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::") // of version 2
		for ; ok && path != "/" && path != "."; path = filepath.Dir(path) {
			if id, err := cgroupID(filepath.Join(root, path)); err == nil && id == wanted {
				return true
			}
		}
	}
	return false
}

// cgroupID is the number by which the kernel knows a cgroup: its inode's.
func cgroupID(path string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return 0, fmt.Errorf("open cgroup %s: %w", path, err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return 0, fmt.Errorf("%s is no folder of cgroup v2", path)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// findCgroupRoot finds where the root of all cgroups is mounted.
func findCgroupRoot() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", fmt.Errorf("look for cgroup v2: %w", err)
	}
	for _, m := range mounts {
		if leadsAll(m.Mountpoint) {
			return m.Mountpoint, nil
		}
	}
	if len(mounts) == 0 {
		return "", errors.New("no cgroup v2 file system is mounted")
	}
	return "", fmt.Errorf("the cgroup v2 file system at %s does not show the root of all cgroups", mounts[0].Mountpoint)
}
