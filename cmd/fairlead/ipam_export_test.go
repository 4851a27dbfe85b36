package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// From host-local to Fairlead and back, while pods come and go.
func TestExportHostLocal(t *testing.T) {
	n := newIPAMNode(t)
	dir := hostLocalDir(t, map[string]string{
		"10.244.1.2": "stays\r\neth0", "fd00:1::2": "stays\r\neth0", "10.244.1.3": "ends\r\neth0", "last_reserved_ip.0": "10.244.1.3", "lock": "",
	})
	n.hide = []string{dir, "TO"}
	if code, _, errs := n.run("import-host-local --network pods --from " + dir); code != exitOK {
		t.Fatal(errs)
	}
	n.add("pods", "new", "eth0", "shop/cart-0", "/run/netns/new")
	n.del("pods", "ends", "eth0")
	late, began := filepath.Join(dir, "pods", "10.244.1.9"), time.Unix(1_700_000_100, 0)
	if err := errors.Join(os.WriteFile(late, []byte("late\r\neth0"), 0o600), os.Chtimes(late, began, began)); err != nil {
		t.Fatal(err)
	}
	export := "export-host-local --network pods --to " + dir
	n.golden("export-dry-run", export+" --dry-run")
	n.golden("export", export)
	n.golden("export-again", export+" -o json")
	files, err := os.ReadDir(filepath.Join(dir, "pods"))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(dir, "pods", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[f.Name()] = string(text)
	}
	want := map[string]string{
		"10.244.1.2": "stays\r\neth0", "fd00:1::2": "stays\r\neth0", "10.244.1.9": "late\r\neth0", "last_reserved_ip.0": "10.244.1.3", "lock": "",
		"10.244.1.4": "new\r\neth0", "fd00:1::3": "new\r\neth0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("host-local has (-want +got):\n%s", diff)
	}
	if err := os.Rename(late, filepath.Join(dir, "pods", "10.244.1.4")); err != nil {
		t.Fatal(err)
	}
	n.golden("export-conflict", export)
	n.golden("export-no-store", "export-host-local --network other --to "+dir)
	n.golden("export-new-dry-run", "export-host-local --network pods --to "+dir+"/elsewhere --dry-run")
}
