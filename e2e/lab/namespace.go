package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// newNamespace makes a network namespace that is bound to the file path, which
// must not exist: it lives until unbind.
func newNamespace(path string) (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	if err := bind(ns, path); err != nil {
		return nil, errors.Join(err, ns.Close(), unbind(path))
	}
	return ns, nil
}

func bind(ns *netns.NS, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := unix.Mount(ns.Path(), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace to %s: %w", path, err)
	}
	return nil
}

// unbind takes back what newNamespace did, or the half of it that was done. The
// namespace itself goes when no process, descriptor or other mount holds it.
func unbind(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH)
	// EINVAL: a plain file, the bind mount was not made.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
