package disk

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/smalldisk"
)

func TestFullDisk(t *testing.T) { smalldisk.Run(t, "512k", fillUp) }

// fillUp adds until the disk is full, and goes on when it is not full any more.
func fillUp(t *testing.T, dir string) {
	t.Helper()
	s := newStore(t, dir)
	ballast := filepath.Join(dir, "ballast")
	holds := map[string]netip.Addr{}
	for i := 0; ; i++ {
		name := fmt.Sprintf("pod-%d", i)
		addr, err := add(t.Context(), s, net4, owner(name))
		if err != nil {
			wantSentence(t, err, unix.ENOSPC, s.path)
			break
		}
		holds[name] = addr
		// Others write too.
		if i == 20 {
			writeUntilFull(t, ballast)
		}
		if i > 100_000 {
			t.Fatal("the disk is never full")
		}
	}
	wantHeld(t, contents(t, s.path), holds, "the disk is full")
	// A pod that goes on a full disk: released, or refused with the reason. A
	// runtime calls again then.
	if err := del(t.Context(), s, owner("pod-0")); err == nil {
		delete(holds, "pod-0")
	} else {
		wantSentence(t, err, unix.ENOSPC, s.path)
	}
	wantHeld(t, contents(t, s.path), holds, "after a DEL on the full disk")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	addr := mustAdd(t, s, owner("when there is room"))
	for name, other := range holds {
		if addr == other {
			t.Errorf("%s was given again, and %s holds it", addr, name)
		}
	}
	readOnly(t, dir, s)
}

// readOnly has the file system be what it becomes when a disk fails.
func readOnly(t *testing.T, dir string, s *Store) {
	t.Helper()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if len(held(t, s, owner("when there is room"))) != 1 {
		t.Error("on a read-only disk nothing can be read")
	}
	_, err := add(t.Context(), s, net4, owner("too late"))
	wantSentence(t, err, unix.EROFS, s.path)
	_, err = add(t.Context(), newStore(t, filepath.Join(dir, "new")), net4, owner("too late"))
	wantSentence(t, err, unix.EROFS, filepath.Join(dir, "new"))
}

// wantSentence wants the kernel's reason and the file's name, and no damage told.
func wantSentence(t *testing.T, err error, reason syscall.Errno, path string) {
	t.Helper()
	if !errors.Is(err, reason) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v, want an error of %s that says %q", err, path, reason.Error())
	}
}

func writeUntilFull(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for err == nil {
		_, err = file.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}
