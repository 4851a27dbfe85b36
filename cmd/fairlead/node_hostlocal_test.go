package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Pods that host-local gave addresses to since the boot keep Fairlead from making others,
// until they are taken over, if they are of the node's ranges.
func TestHostLocalGuard(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}
	n := newIPAMNode(t)
	dir := hostLocalDir(t, map[string]string{ // of long ago
		"10.244.1.2": "earlier\r\neth0", "10.245.1.2": "elsewhere\r\neth0", "lock": "",
	})
	guard := func() *hostLocalGuard {
		return &hostLocalGuard{dir: dir, stores: &nodeStores{dataDir: n.dataDir, bootID: func() (string, error) { return n.boot, nil }}}
	}
	check := func(want string) {
		t.Helper()
		err := guard().check(t.Context(), ranges)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	check("")
	touch := func(name string) {
		t.Helper()
		if err := os.Chtimes(filepath.Join(dir, "pods", name), time.Now(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	touch("10.245.1.2")
	check("")
	touch("10.244.1.2")
	check("host-local has addresses of this node's ranges for 1 pod in " + filepath.Join(dir, "pods") +
		", such as 10.244.1.2 for container earlier interface eth0: take them over by 'fairlead ipam import-host-local --from-network pods'")
	if code, _, errs := n.run("import-host-local --network fairlead --from-network pods --from " + dir); code != exitOK {
		t.Fatal(errs)
	}
	check("")
	dir = filepath.Join(dir, "nowhere")
	check("")
}
