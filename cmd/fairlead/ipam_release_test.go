package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReleaseOfWhatChanged is a pod that goes, and another that comes to its
// address, while the operator is being asked.
func TestReleaseOfWhatChanged(t *testing.T) {
	n := newBusyNode(t)
	networks, err := ipamFlags{dataDir: n.dataDir, network: "storage", output: "table"}.networks()
	if err != nil {
		t.Fatal(err)
	}
	e := env{bootID: func() (string, error) { return n.boot, nil }, now: func() time.Time { return n.now }}
	found, err := releaseFlags{}.find(t.Context(), e, networks, "10.9.0.2")
	if err != nil {
		t.Fatal(err)
	}
	n.del("storage", "c0ffee99", "eth0")
	n.add("storage", "c0ffee99", "eth0", "", "")
	want := "release 10.9.0.2 of container c0ffee99 interface eth0 in network storage: it changed in the meantime; nothing was changed"
	if err := found[0].release(t.Context(), e); err == nil || err.Error() != want {
		t.Errorf("got error %v\nwant %s", err, want)
	}
	if _, out, _ := n.run("list --network storage"); !strings.Contains(out, "c0ffee99") {
		t.Errorf("afterwards:\n%s", out)
	}
}

// TestReleaseBesideADamagedStore frees what is held in one network while another
// network's store cannot be read.
func TestReleaseBesideADamagedStore(t *testing.T) {
	n := newBusyNode(t)
	if err := os.Truncate(filepath.Join(n.dataDir, "pods.db"), 100); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := n.run("release 10.9.0.2 --yes"); code != exitOK || !strings.HasPrefix(out, "released 10.9.0.2 ") {
		t.Errorf("code %d, stdout %q, stderr %q", code, out, errs)
	}
}

func TestReleaseFreesTheAddress(t *testing.T) {
	n := newBusyNode(t)
	if code, _, errs := n.run("release 10.9.0.2 --yes"); code != exitOK {
		t.Fatalf("code %d: %s", code, errs)
	}
	n.add("storage", "next", "eth0", "", "")
	if _, out, _ := n.run("list --network storage"); !strings.Contains(out, "10.9.0.2  -    next ") {
		t.Errorf("the address was not given again:\n%s", out)
	}
}

// terminal returns the two ends of a terminal.
func terminal(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	if err := unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return keyboard, tty
}

func TestReleaseAsks(t *testing.T) {
	for _, tt := range []struct{ name, typed string }{
		{"yes", "y\n"},
		{"no", "n\n"},
		{"nothing", "\n"},
		{"end", "\x04"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newBusyNode(t)
			keyboard, tty := terminal(t)
			if _, err := keyboard.WriteString(tt.typed); err != nil {
				t.Fatal(err)
			}
			n.stdin = tty
			n.golden("release-asks-"+tt.name, "release 10.9.0.2")
			held := "c0ffee99"
			if tt.name == "yes" {
				held = "no pod holds an address"
			}
			if _, out, _ := n.run("list --network storage"); !strings.Contains(out, held) {
				t.Errorf("afterwards:\n%s", out)
			}
		})
	}
}
