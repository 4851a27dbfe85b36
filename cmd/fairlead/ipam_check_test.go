package main

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/ipam"
)

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
