package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

var update = flag.Bool("update", false, "write the golden files")

// ipamNode is a machine whose clock moves a second with every pod that comes or goes.
type ipamNode struct {
	t       *testing.T
	dataDir string
	boot    string
	now     time.Time
	stdin   io.Reader
	hide    []string // old and new text, for the documents
}

func newIPAMNode(t *testing.T) *ipamNode {
	return &ipamNode{t: t, dataDir: t.TempDir(), boot: "first", now: time.Unix(1_700_000_000, 0), stdin: strings.NewReader("")}
}

func oneRange(subnet string) ipam.Set {
	p := netip.MustParsePrefix(subnet)
	return ipam.Set{{Subnet: p, First: p.Addr().Next(), Last: ipam.LastHost(p), Gateway: p.Addr().Next()}}
}

// testNetworks are the networks of the tests and their range sets.
var testNetworks = map[string][]ipam.Set{
	"pods":    {oneRange("10.244.1.0/24"), oneRange("fd00:1::/64")},
	"storage": {oneRange("10.9.0.0/30")},
}

func (n *ipamNode) change(network string, f func(ipam.Tx) error) {
	n.t.Helper()
	n.now = n.now.Add(time.Second)
	store, err := disk.New(n.dataDir, network)
	if err != nil {
		n.t.Fatal(err)
	}
	err = store.Update(n.t.Context(), func(tx ipam.Tx) error { return errors.Join(ipam.Reclaim(tx, n.boot), f(tx)) })
	if err != nil {
		n.t.Fatal(err)
	}
}

// add gives a container's interface its addresses; netns is where it runs.
func (n *ipamNode) add(network, id, ifName, pod, netns string) {
	n.t.Helper()
	n.change(network, func(tx ipam.Tx) error {
		_, err := ipam.Allocate(tx, testNetworks[network], ipam.Request{
			Owner: ipam.Owner{ContainerID: id, IfName: ifName}, Netns: netns, Pod: pod,
			Cooldown: 30 * time.Second, Boot: n.boot, Now: n.now,
		})
		return err
	})
}

func (n *ipamNode) del(network, id, ifName string) {
	n.t.Helper()
	n.change(network, func(tx ipam.Tx) error {
		return ipam.Release(tx, ipam.Owner{ContainerID: id, IfName: ifName}, n.now)
	})
}

// run executes 'fairlead ipam' with the node's data directory, which is DATADIR in
// what it returns.
func (n *ipamNode) run(line string) (code int, stdout, stderr string) {
	n.t.Helper()
	var out, errs bytes.Buffer
	e := env{
		stdin: n.stdin, stdout: &out, stderr: &errs,
		bootID: func() (string, error) { return n.boot, nil },
		now:    func() time.Time { return n.now },
	}
	args := append([]string{"ipam"}, strings.Fields(line)...)
	code = run(n.t.Context(), append(args, "--data-dir", n.dataDir), e)
	hide := strings.NewReplacer(append([]string{n.dataDir, "DATADIR"}, n.hide...)...)
	return code, hide.Replace(out.String()), hide.Replace(errs.String())
}

// golden runs a command and compares all that it says with a file.
func (n *ipamNode) golden(name, line string) {
	n.t.Helper()
	code, out, errs := n.run(line)
	got := strings.NewReplacer(n.hide...).Replace(fmt.Sprintf("$ fairlead ipam %s\n%s", line, out))
	if errs != "" {
		got += "stderr: " + errs
	}
	got += fmt.Sprintf("exit code %d\n", code)
	path := filepath.Join("testdata", "ipam", name+".golden")
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, []byte(got), 0o600)); err != nil {
			n.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		n.t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		n.t.Errorf("%s: -want +got\n%s", name, diff)
	}
}

const cartID = "c0ffee00112233445566778899aabbccddeeff00112233445566778899aabbcc"

// newBusyNode has two networks, one of which has nothing left.
func newBusyNode(t *testing.T) *ipamNode {
	n := newIPAMNode(t)
	n.add("pods", "gone", "eth0", "shop/job-1", "/run/netns/gone")
	n.add("pods", cartID, "eth0", "shop/cart-0", "/run/netns/cart")
	n.add("pods", cartID, "net1", "shop/cart-0", "/run/netns/cart")
	n.add("storage", "c0ffee99", "eth0", "", "")
	n.del("pods", "gone", "eth0")
	return n
}

func TestIPAMDocuments(t *testing.T) {
	for _, tt := range []struct{ name, line string }{
		{"show", "show"},
		{"show-json", "show -o json"},
		{"show-network", "show --network storage"},
		{"list", "list"},
		{"list-json", "list -o json"},
		{"list-no-such-network", "list --network nosuch"},
		{"release-address", "release 10.244.1.3 --yes"},
		{"release-container", "release c0ffee0 --yes"},
		{"release-interface", "release " + cartID + " --ifname net1 -y"},
		{"release-json", "release fd00:1::4 --yes -o json"},
		{"release-mapped", "release ::ffff:10.244.1.3 --yes"},
		{"release-ambiguous", "release c0ffee --yes"},
		{"release-unknown-address", "release 10.244.1.77 --yes"},
		{"release-unknown-container", "release deadbeef --yes"},
		{"release-other-network", "release 10.9.0.2 --yes --network pods"},
	} {
		t.Run(tt.name, func(t *testing.T) { newBusyNode(t).golden(tt.name, tt.line) })
	}
}

func TestIPAMOfANodeWithoutPods(t *testing.T) {
	for name, line := range map[string]string{
		"show-empty": "show", "show-empty-json": "show -o json",
		"list-empty": "list", "list-empty-json": "list -o json",
		"check-empty": "check --netns-dir /nowhere", "check-empty-json": "check --netns-dir /nowhere -o json",
	} {
		n := newIPAMNode(t)
		n.dataDir = filepath.Join(n.dataDir, "nowhere")
		n.golden(name, line)
		if _, err := os.Stat(n.dataDir); err == nil {
			t.Errorf("%s made %s", line, n.dataDir)
		}
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

func TestIPAMUsageErrors(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"show extra", "argument \"extra\": 'fairlead ipam show' takes none"},
		{"show -o xml", `--output "xml": allowed are table and json`},
		{"list --network ../x", `--network: network name "../x" is not allowed: it must be letters, digits and _.-, of which the first is a letter or digit`},
		{"release", "'fairlead ipam release' takes one address or container ID"},
		{"release 10.9.0.2", "release: standard input is no terminal to ask on: confirm by --yes"},
		{"import-host-local", "--network: missing: the name of the network to take over"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			n := newBusyNode(t)
			code, out, errs := n.run(tt.line)
			if want := "fairlead: " + tt.want + "\n"; code != exitUsage || errs != want || out != "" {
				t.Errorf("code %d, stdout %q, stderr:\n%swant:\n%s", code, out, errs, want)
			}
		})
	}
}

// TestStoresThatAreRefused gives every command a store that is damaged or of a
// newer release: it says so in a sentence, shows what else there is, fails, and
// does not touch the file.
func TestStoresThatAreRefused(t *testing.T) {
	for _, spoilt := range []struct {
		name  string
		spoil func(path string) error
		want  string
	}{
		{"damaged", func(path string) error { return os.Truncate(path, 100) }, "it is damaged"},
		{"newer", func(path string) error {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			newer := func(tx *bbolt.Tx) error { return tx.Bucket([]byte("about")).Put([]byte("schema"), []byte("2")) }
			return errors.Join(db.Update(newer), db.Close())
		}, `it has schema "2" and this program knows schema 1 only`},
	} {
		for _, line := range []string{
			"show", "list", "check --netns-dir /nowhere", "release 10.244.1.3 --yes",
			"import-host-local --network pods", "import-host-local --network pods --dry-run",
		} {
			t.Run(spoilt.name+"/"+line, func(t *testing.T) {
				n := newBusyNode(t)
				path := filepath.Join(n.dataDir, "pods.db")
				if err := spoilt.spoil(path); err != nil {
					t.Fatal(err)
				}
				before, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasPrefix(line, "import") {
					line += " --from " + hostLocalDir(t, map[string]string{"10.244.1.77": "old\r\neth0"})
				}
				code, out, errs := n.run(line)
				if code != exitFailed || !strings.Contains(out+errs, spoilt.want) || strings.Count(errs, "\n") != 1 {
					t.Errorf("code %d, stdout:\n%sstderr:\n%s", code, out, errs)
				}
				if strings.HasPrefix(line, "show") || strings.HasPrefix(line, "list") {
					if !strings.Contains(out, "storage") {
						t.Errorf("the other network is not shown:\n%s", out)
					}
				}
				after, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(before, after) {
					t.Errorf("the file changed, %v", err)
				}
			})
		}
	}
}

// hostLocalDir is a directory of host-local with the network pods.
func hostLocalDir(t *testing.T, rows map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "pods"), 0o750); err != nil {
		t.Fatal(err)
	}
	began := time.Unix(1_690_000_000, 0)
	for name, text := range rows {
		path := filepath.Join(dir, "pods", name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chtimes(path, began, began)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestImportHostLocal(t *testing.T) {
	n := newIPAMNode(t)
	rows := map[string]string{
		"10.244.1.2": "old1\r\neth0", "fd00:1::2": "old1\r\neth0", "10.244.1.5": "old2\r\neth0",
		"10.244.1.9": "", "last_reserved_ip.0": "10.244.1.9", "lock": "",
	}
	dir := hostLocalDir(t, rows)
	n.hide = []string{dir, "FROM"}
	step := func(name, flags string) {
		t.Helper()
		n.golden("import-"+name, strings.TrimSpace("import-host-local --network pods --from "+dir+" "+flags))
	}
	step("dry-run", "--dry-run")
	if _, err := os.Stat(filepath.Join(n.dataDir, "pods.db")); err == nil {
		t.Error("the dry run made a store")
	}
	step("json-dry-run", "--dry-run -o json")
	step("first", "")
	step("again", "")
	n.golden("import-list", "list")
	n.add("pods", "new1", "eth0", "", "")
	n.add("pods", "new2", "eth0", "", "")
	n.golden("import-list-with-new-pods", "list")

	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "pods", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("10.244.1.3", "late\r\neth0")
	write("10.244.1.8", "later\r\neth0")
	step("conflict", "")
	write("10.244.1.3", "nonsense")
	step("unreadable", "")
	for name, want := range rows {
		if got, err := os.ReadFile(filepath.Join(dir, "pods", name)); err != nil || string(got) != want {
			t.Errorf("host-local's %s is now %q, %v", name, got, err)
		}
	}
}

func TestImportOfNoNetwork(t *testing.T) {
	n := newIPAMNode(t)
	code, _, errs := n.run("import-host-local --network pods --from /nowhere")
	if want := "fairlead: open host-local's network: stat /nowhere/pods: no such file or directory\n"; code != exitFailed || errs != want {
		t.Errorf("code %d, stderr %q, want %q", code, errs, want)
	}
}

// podIn makes a network namespace with addresses and names it in dir.
func podIn(t *testing.T, dir, name string, addrs ...string) string {
	t.Helper()
	ns := netns.NewT(t)
	for _, addr := range addrs {
		ns.RunT(t, "ip", "addr", "add", addr, "dev", "lo")
	}
	path := filepath.Join(dir, name)
	if err := os.Symlink(ns.Path(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCheck builds pods of every kind: well, gone, unknown to the store, and of
// nobody's concern.
func TestCheck(t *testing.T) {
	n := newIPAMNode(t)
	dir := t.TempDir()
	n.add("pods", "well", "eth0", "shop/cart-0", podIn(t, dir, "well", "10.244.1.2/24", "fd00:1::2/64"))
	podIn(t, dir, "of-the-node", "10.244.1.1/24", "192.168.0.1/24")
	check := func(more string) (int, string, string) {
		return n.run("check --netns-dir " + dir + " --netns-dir /nowhere " + more)
	}
	if code, out, errs := check(""); code != exitOK || out != "checked 1 network in DATADIR: nothing is wrong\n" {
		t.Fatalf("code %d, stdout %q, stderr %q", code, out, errs)
	}

	n.add("pods", "gone", "eth0", "shop/cart-1", filepath.Join(dir, "gone"))
	left := filepath.Join(dir, "left") // as after the namespace was unmounted
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.add("storage", "left", "eth0", "shop/cart-2", left)
	podIn(t, dir, "unknown", "10.244.1.77/24")
	n.change("pods", func(tx ipam.Tx) error {
		_, err := ipam.Import(tx, n.boot, []ipam.Lease{
			{Owner: ipam.Owner{ContainerID: "imported", IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.88")}},
			{Owner: ipam.Owner{ContainerID: "stale", IfName: "eth0"}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.89")}},
		})
		return err
	})
	podIn(t, dir, "imported", "10.244.1.88/24")

	hide := strings.NewReplacer(dir, "NETNS")
	for _, tt := range []struct {
		name, flags, want string
	}{
		{"all", "", `NETWORK  FOUND     ADDRESS      CONTAINER  DETAIL
pods     no-netns  10.244.1.3   gone       network namespace NETNS/gone is gone
pods     no-netns  10.244.1.89  stale      no network namespace has it
pods     no-netns  fd00:1::3    gone       network namespace NETNS/gone is gone
storage  no-netns  10.9.0.2     left       network namespace NETNS/left is gone
pods     no-row    10.244.1.77  -          it is used in NETNS/unknown
`},
		{"one network", "--network storage", `NETWORK  FOUND     ADDRESS   CONTAINER  DETAIL
storage  no-netns  10.9.0.2  left       network namespace NETNS/left is gone
`},
		{"JSON", "--network storage -o json", `{
  "ok": false,
  "findings": [
    {
      "network": "storage",
      "kind": "no-netns",
      "address": "10.9.0.2",
      "container": "left",
      "netns": "NETNS/left",
      "detail": "network namespace NETNS/left is gone"
    }
  ]
}
`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errs := check(tt.flags)
			if diff := cmp.Diff(tt.want, hide.Replace(out)); diff != "" || code != exitFailed || !strings.HasPrefix(errs, "fairlead: check: found ") {
				t.Errorf("code %d, stderr %q, stdout -want +got\n%s", code, errs, diff)
			}
		})
	}
	if code, _, errs := check("--network nosuch"); code != exitFailed || errs != "fairlead: network nosuch has no store in DATADIR\n" {
		t.Errorf("no such network: code %d, stderr %q", code, errs)
	}
}

// TestCheckFindsRowsThatContradict spoils a row behind the allocator's back.
func TestCheckFindsRowsThatContradict(t *testing.T) {
	n := newIPAMNode(t)
	n.add("storage", "a", "eth0", "", "/proc/self/ns/net")
	db, err := bbolt.Open(filepath.Join(n.dataDir, "storage.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	spoil := func(tx *bbolt.Tx) error { return tx.Bucket([]byte("rows")).Put([]byte("la\x00eth0"), []byte("{}")) }
	if err := errors.Join(db.Update(spoil), db.Close()); err != nil {
		t.Fatal(err)
	}
	n.golden("check-contradiction", "check --netns-dir /nowhere")
}
