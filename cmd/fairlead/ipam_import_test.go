package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

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
