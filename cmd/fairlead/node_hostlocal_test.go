package main

import (
	"bytes"
	"net/http"
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
		todo, err := guard().check(t.Context(), ranges)
		if err != nil || (want == "") != (todo == "") || !strings.Contains(todo, want) {
			t.Errorf("%q, error %v, want %q", todo, err, want)
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

// While pods of host-local are to be taken over, which a person has to do, 'fairlead node'
// lives however long that takes, and says for what it waits.
func TestNodeWaitsForImport(t *testing.T) {
	r := newNode(t)
	dir := hostLocalDir(t, map[string]string{"10.244.1.7": "old\r\neth0"})
	if err := os.Chtimes(filepath.Join(dir, "pods", "10.244.1.7"), time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	r.start("--host-local-dir", dir, "--healthz-bind-address", "[fd00::1]:10257")
	r.log.await("msg=problem kind=NotInstalled")
	r.awaitProbe("10257/healthz", http.StatusOK, "waiting: no pods are made here: host-local has addresses of this node's ranges for 1 pod")
	r.awaitProbe("10257/readyz", http.StatusServiceUnavailable, "no pods are made here: host-local has addresses")
	var out, errs bytes.Buffer
	args := []string{"ipam", "import-host-local", "--network", "pods", "--from", dir, "--data-dir", r.data}
	if code := run(t.Context(), args, testEnv(&out, &errs)); code != exitOK {
		t.Fatal(errs.String())
	}
	r.log.await("msg=mended kind=NotInstalled")
	r.awaitProbe("10257/healthz", http.StatusOK, "ok\n")
	r.awaitProbe("10257/readyz", http.StatusOK, "ok\n")
}

// awaitProbe waits until a probe is answered as is wanted.
func (r *running) awaitProbe(what string, status int, begins string) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		got, text := r.get(what)
		if got == status && strings.HasPrefix(text, begins) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("/%s: %d %s", what, got, text)
		}
	}
}

// To wait is not to fail.
func TestNodeHealthWaits(t *testing.T) {
	var h nodeHealth
	later := time.Now().Add(2 * unhealthyAfter)
	h.tell(false, true, "")
	if h.trouble(later) == nil {
		t.Error("what fails is well")
	}
	h.tell(true, true, "import them")
	if err := h.trouble(later); err != nil || h.unready() == nil {
		t.Errorf("what waits: %v, ready: %v", err, h.unready() == nil)
	}
}
