package ebpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ebpf/pins"
)

// usualMount is where a bpf file system belongs.
const usualMount = "/sys/fs/bpf"

// openRoot makes the folder of the pins and locks it for this process.
func openRoot(root string) (*os.File, error) {
	if err := makeRoot(root); err != nil {
		return nil, fmt.Errorf("make %s: %w", root, err)
	}
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrInUse
	}
	if err != nil {
		_ = dir.Close()
		return nil, fmt.Errorf("lock %s: %w", root, err)
	}
	return dir, nil
}

func makeRoot(root string) error {
	mount := root
	if strings.HasPrefix(root, usualMount+"/") {
		mount = usualMount
	} else if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	is, err := isBPF(mount)
	if err != nil {
		return err
	}
	if !is {
		if err := unix.Mount("bpf", mount, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return fmt.Errorf("mount a bpf file system at %s: %w", mount, err)
		}
	}
	return os.MkdirAll(root, 0o700)
}

// keepRoot makes and locks the folder of the pins anew where others have removed it, or
// unmounted its file system. That lives on as long as we have it open, and what is
// pinned there runs on: links to the kernel move to the new folder, so that none is made
// twice and none missed.
func (d *DataPath) keepRoot() error {
	was, err := d.lock.Stat()
	if err != nil {
		return err
	}
	is, err := os.Stat(d.config.Root)
	if err == nil && os.SameFile(was, is) {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	lock, err := openRoot(d.config.Root)
	if err != nil {
		return err
	}
	locked := d.lock
	former := fmt.Sprintf("/proc/self/fd/%d", locked.Fd())
	err = errors.Join(moveLinks(filepath.Join(former, "links"), d.pin("links")), moveLinks(pins.Links(former), pins.Links(d.config.Root)))
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	d.lock = lock
	return locked.Close()
}

// moveLinks moves the pins of links from one folder to another, which may be in another
// file system. It is no error if there are none.
func moveLinks(from, to string) error {
	entries, err := os.ReadDir(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.MkdirAll(to, 0o700)
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		l, err := link.LoadPinnedLink(filepath.Join(from, e.Name()), nil)
		if err != nil {
			return fmt.Errorf("open link %s: %w", e.Name(), err)
		}
		err = l.Unpin()
		if err == nil {
			err = l.Pin(filepath.Join(to, e.Name()))
		}
		_ = l.Close()
		if err != nil {
			return fmt.Errorf("pin link %s: %w", filepath.Join(to, e.Name()), err)
		}
	}
	return nil
}

// isBPF says whether a path is in a bpf file system.
func isBPF(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, err
	}
	return st.Type == unix.BPF_FS_MAGIC, nil
}

// Remove takes back all that is pinned under root, and with it out of the kernel,
// whether its process runs or not. It is no error if there is nothing.
func Remove(root string) error {
	is, err := isBPF(root)
	if errors.Is(err, os.ErrNotExist) || (err == nil && !is) {
		return nil
	}
	if err != nil {
		return err
	}
	// First, so that the CNI plugin attaches no more.
	if err := os.RemoveAll(filepath.Join(root, "programs")); err != nil {
		return err
	}
	if err := errors.Join(detachAll(filepath.Join(root, "links")), detachAll(pins.Links(root)), removeFilters()); err != nil {
		return err
	}
	for _, folder := range []string{"links", filepath.Base(pins.Links(root)), "maps", nextMaps} {
		if err := os.RemoveAll(filepath.Join(root, folder)); err != nil {
			return err
		}
	}
	others, err := os.ReadDir(root)
	if err != nil || slices.ContainsFunc(others, isPinned) {
		return err // somebody else has pinned something there too
	}
	mounted, err := mountinfo.Mounted(root)
	if err != nil {
		return err
	}
	if mounted {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", root, err)
		}
	}
	return os.Remove(root)
}

// isPinned says whether an entry of a bpf file system is somebody's: two are there
// from the beginning (kernel/bpf/preload).
func isPinned(e os.DirEntry) bool { return e.Name() != "maps.debug" && e.Name() != "progs.debug" }

// detachAll takes the programs out of the way first: as long as a process holds a
// link open the kernel keeps it, pinned or not.
func detachAll(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("open link %s: %w", path, err)
		}
		err = l.Detach()
		_ = l.Close()
		if err != nil && !errors.Is(err, link.ErrNotSupported) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach %s: %w", path, err)
		}
	}
	return nil
}
