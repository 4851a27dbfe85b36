// Package install puts the CNI plugin and its configuration where the container
// runtime looks for them.
//
// A runtime may read at any moment: every file is written beside its place, with
// its content on the disk, and then moved there in one step. The configuration
// comes last, because with it the node counts as ready for pods: its caller
// writes it only when pods can be connected.
package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Names in the runtime's directories.
const (
	Plugin   = "fairlead-cni"
	IPAM     = "fairlead-ipam" // the same file: it looks by what name it is called
	Conflist = "10-fairlead.conflist"
)

// Binary puts the plugin, the file source, into a directory under both its names.
// Nothing is written if it is there already.
func Binary(source, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of plugins: %w", err)
	}
	if err := copyFile(source, filepath.Join(dir, Plugin)); err != nil {
		return fmt.Errorf("install %s: %w", Plugin, err)
	}
	if err := symlink(Plugin, filepath.Join(dir, IPAM)); err != nil {
		return fmt.Errorf("install %s: %w", IPAM, err)
	}
	return nil
}

func copyFile(source, target string) error {
	want, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	if same(target, want, 0o755) {
		return nil
	}
	return write(target, bytes.NewReader(want), 0o755)
}

// symlink makes a link that leads to a file of the same directory, so that both
// names change in one step when the file does.
func symlink(to, link string) error {
	if have, err := os.Readlink(link); err == nil && have == to {
		return nil
	}
	temporary := link + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(to, temporary); err != nil {
		return err
	}
	return os.Rename(temporary, link)
}

// Config writes the runtime's network configuration, which only root may read: it
// may hold what a template was given. Nothing is written if it is there already.
func Config(dir string, text []byte) error {
	path := filepath.Join(dir, Conflist)
	if same(path, text, 0o600) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory of network configurations: %w", err)
	}
	if err := write(path, bytes.NewReader(text), 0o600); err != nil {
		return fmt.Errorf("write network configuration: %w", err)
	}
	return nil
}

// same says whether a file is as it is to be.
func same(path string, content []byte, mode os.FileMode) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != mode {
		return false
	}
	have, err := os.ReadFile(path)
	return err == nil && bytes.Equal(have, content)
}

// RemoveConfig takes the configuration away, if it is there. The plugin stays:
// the runtime needs it to remove the pods that there are.
func RemoveConfig(dir string) error {
	err := os.Remove(filepath.Join(dir, Conflist))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network configuration: %w", err)
	}
	return nil
}

// write replaces a file in one step. The temporary name ends in .new, which no
// runtime takes for a configuration.
func write(path string, content io.Reader, mode os.FileMode) error {
	temporary := path + ".new"
	if err := writeNew(temporary, content, mode); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	if err := os.Rename(temporary, path); err != nil {
		return errors.Join(err, removeIfThere(temporary))
	}
	return syncDir(filepath.Dir(path))
}

func writeNew(path string, content io.Reader, mode os.FileMode) error {
	if err := removeIfThere(path); err != nil { // of a process that was killed
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, content)
	return errors.Join(err, file.Chmod(mode), file.Sync(), file.Close()) // Chmod: whatever the umask is
}

func removeIfThere(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// syncDir brings a directory's entries to the disk.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
