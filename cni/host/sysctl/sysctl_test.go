package sysctl

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

func TestReadWrite(t *testing.T) {
	err := netns.NewT(t).Do(func() error {
		const path = "net/ipv4/ip_forward"
		for _, value := range []string{"1", "0"} {
			if err := Write(path, value); err != nil {
				return err
			}
			if got, err := Read(path); err != nil || got != value {
				t.Errorf("it is %q (%v), want %q", got, err, value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := Write("net/none", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a value that there is not: %v", err)
	}
}

// As in a container without privileges, the usual place is read-only.
func TestReadOnly(t *testing.T) {
	usual, host := t.TempDir(), t.TempDir()
	for _, mount := range []func() error{
		func() error { return unix.Mount(usual, usual, "", unix.MS_BIND, "") },
		func() error { return unix.Mount("", usual, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "") },
	} {
		if err := mount(); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(usual, unix.MNT_DETACH) })
	if err := write([]string{usual, filepath.Join(host, "none")}, "x", "1"); !errors.Is(err, unix.EROFS) {
		t.Errorf("without the host's: %v, want that it is read-only", err)
	}
	if err := os.WriteFile(filepath.Join(host, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write([]string{usual, host}, "x", "1"); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(host, "x")); string(text) != "1" {
		t.Errorf("the host's is %q (%v), want 1", text, err)
	}
}
