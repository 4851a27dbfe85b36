package takeover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/refplugins"
	"github.com/fairlead/fairlead/ipam"
)

var sameAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// hostLocal runs the reference plugin for a pod.
func hostLocal(t *testing.T, dir, verb, id, ifName string) {
	t.Helper()
	plugins := refplugins.Dir(t)
	cmd := exec.CommandContext(t.Context(), filepath.Join(plugins, "host-local"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_NETNS=/run/netns/"+id, "CNI_IFNAME="+ifName, "CNI_PATH="+plugins)
	cmd.Stdin = strings.NewReader(`{"cniVersion": "1.0.0", "name": "pods", "type": "x", "ipam": {"type": "host-local",
		"dataDir": "` + dir + `", "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]}}`)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("host-local %s: %v: %s", verb, err, out)
	}
}

func read(t *testing.T, dir string) (Rows, error) {
	t.Helper()
	d, err := Open(t.Context(), dir, "pods")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return d.Read()
}

func lease(id, ifName string, addrs ...string) ipam.Lease {
	l := ipam.Lease{Owner: ipam.Owner{ContainerID: id, IfName: ifName}}
	for _, addr := range addrs {
		l.Addrs = append(l.Addrs, netip.MustParseAddr(addr))
	}
	return l
}

// TestRowsOfHostLocal reads what host-local itself wrote.
func TestRowsOfHostLocal(t *testing.T) {
	dir := t.TempDir()
	began := time.Now().Add(-time.Second) // a file's time is that of the last tick
	hostLocal(t, dir, "ADD", "a", "eth0")
	hostLocal(t, dir, "ADD", "b", "eth0")
	hostLocal(t, dir, "ADD", "b", "net1")
	hostLocal(t, dir, "ADD", "c.d_e-f", "eth0")
	hostLocal(t, dir, "DEL", "a", "eth0")
	got, err := read(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := Rows{Leases: []ipam.Lease{
		lease("b", "eth0", "10.1.0.3", "fd00::3"),
		lease("b", "net1", "10.1.0.4", "fd00::4"),
		lease("c.d_e-f", "eth0", "10.1.0.5", "fd00::5"),
	}}
	if diff := cmp.Diff(want, got, sameAddrs, cmpopts.IgnoreFields(ipam.Lease{}, "Since")); diff != "" {
		t.Errorf("rows: -want +got\n%s", diff)
	}
	for _, l := range got.Leases {
		if l.Since.Before(began) || l.Since.After(time.Now()) {
			t.Errorf("%s has its addresses since %s", l.Owner, l.Since)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"10.1.0.5":           "a\r\neth0",
		"fd00::5":            "a\neth0\n",
		"10.1.0.10":          " b\r\neth0\r\n",
		"10.1.0.9":           "",
		"last_reserved_ip.0": "10.1.0.10",
		"lock":               "",
		"10.1.0":             "c\r\neth0",
		"::ffff:10.1.0.7":    "c\r\neth0",
		"fd00::0:7":          "c\r\neth0",
		"fe80::1%eth0":       "c\r\neth0",
	} {
		write(t, filepath.Join(dir, "pods", name), text)
	}
	got, err := read(t, dir)
	want := Rows{
		Leases:  []ipam.Lease{lease("a", "eth0", "10.1.0.5", "fd00::5"), lease("b", "eth0", "10.1.0.10")},
		Unowned: []netip.Addr{netip.MustParseAddr("10.1.0.9")},
	}
	if diff := cmp.Diff(want, got, sameAddrs, cmpopts.IgnoreFields(ipam.Lease{}, "Since")); diff != "" || err != nil {
		t.Errorf("rows: error %v, -want +got\n%s", err, diff)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUnreadableRows(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"no interface", "abc", `"abc" is not a container ID and, on a second line, an interface`},
		{"a third line", "abc\r\neth0\r\nx", `"abc\r\neth0\r\nx" is not a container ID and, on a second line, an interface`},
		{"no container", "\r\neth0", `"eth0" is not a container ID and, on a second line, an interface`},
		{"binary", "\x00\xff", `"\x00\xff" is not a container ID and, on a second line, an interface`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "pods", "10.1.0.5"), tt.text)
			write(t, filepath.Join(dir, "pods", "10.1.0.6"), "b\r\neth0")
			rows, err := read(t, dir)
			if want := "read host-local's row of 10.1.0.5: " + tt.want; err == nil || err.Error() != want {
				t.Errorf("got error %v\nwant %s", err, want)
			}
			if len(rows.Leases) != 1 {
				t.Errorf("got leases %v", rows.Leases)
			}
		})
	}
}

func TestOpenNeedsTheNetwork(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), dir, "pods"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got error %v", err)
	}
	if files, err := os.ReadDir(dir); len(files) > 0 || err != nil {
		t.Errorf("Open left %v, %v", files, err)
	}
}

// TestLockIsHostLocals holds host-local's lock in both directions: nobody gets it
// while a Dir is open, and a Dir is not opened while somebody has it.
func TestLockIsHostLocals(t *testing.T) {
	dir := t.TempDir()
	hostLocal(t, dir, "ADD", "a", "eth0")
	theirs, err := os.OpenFile(filepath.Join(dir, "pods", "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = theirs.Close() }()
	d, err := Open(t.Context(), dir, "pods")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(theirs.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("while a Dir is open: got error %v", err)
	}
	d.Close()
	if err := unix.Flock(int(theirs.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("after Close: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Open(ctx, dir, "pods"); !errors.Is(err, context.Canceled) {
		t.Errorf("while host-local has it: got error %v", err)
	}
}

// FuzzRow expects of a file of any name and content what host-local, which compares
// texts, would find by it, or an error.
func FuzzRow(f *testing.F) {
	f.Add("10.1.0.5", "a\r\neth0")
	f.Add("fd00::5", "  a\neth0\n\n")
	f.Add("10.1.0.05", "a")
	f.Add("::ffff:1.2.3.4", "\r\n")
	f.Fuzz(func(t *testing.T, name, text string) {
		if addr, ok := parseName(name); ok && addr.String() != name {
			t.Fatalf("file %q is taken for address %s", name, addr)
		}
		owner, err := parseOwner(text)
		switch {
		case err != nil:
			return
		case owner == ipam.Owner{}:
			if strings.TrimSpace(text) != "" {
				t.Fatalf("%q is taken for nothing", text)
			}
		default:
			got := strings.ReplaceAll(strings.TrimSpace(text), "\r\n", "\n")
			if want := fmt.Sprintf("%s\n%s", owner.ContainerID, owner.IfName); got != want {
				t.Fatalf("%q is taken for %s", text, owner)
			}
		}
	})
}
