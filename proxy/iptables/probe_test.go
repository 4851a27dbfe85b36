package iptables

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/service"
)

// withoutExtension has iptables work without one of its extensions.
func withoutExtension(t *testing.T, name string) {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil || len(found) == 0 {
		t.Fatalf("no extensions of iptables found: %v", err)
	}
	dir := t.TempDir()
	for _, path := range found {
		if base := filepath.Base(path); base != name {
			if err := os.Symlink(path, filepath.Join(dir, base)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("XTABLES_LIBDIR", dir)
}

func TestProbe(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		before := n.save()
		for _, f := range n.start().families {
			if len(f.lacks) > 0 {
				t.Errorf("all is there, and yet: %v", f.lacks)
			}
			// Each need is asked for as such, not only all of them.
			for _, need := range f.needs() {
				if err := f.tryElsewhere(need); err != nil {
					t.Errorf("%s: %v", need.rule, err)
				}
			}
		}
		if diff := cmp.Diff(before, n.save()); diff != "" {
			t.Errorf("a probe wrote rules:\n%s", diff)
		}
	})
}

// What nothing can be served without is said at the start.
func TestProbeOfWhatIsNeeded(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		withoutExtension(t, "libxt_bpf.so")
		err := n.Do(func() error {
			_, err := New(Config{Variant: n.variant, MasqueradeMark: 0x4000})
			return err
		})
		if err == nil || !strings.Contains(err.Error(), "xt_bpf") {
			t.Errorf("error: %v", err)
		}
	})
}

// Without an extension that few Services need the others are served.
func TestProbeOfWhatFewNeed(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		withoutExtension(t, "libxt_recent.so")
		n.backend = n.start()
		table := resolved(6, 2)
		n.mustSync(table, service.Change{})
		for id, pool := range table.Pools {
			if id.Service.Name == "s1" {
				pool.Affinity = time.Hour
				table.Pools[id] = pool
			}
		}
		err := n.sync(table, service.Change{Node: true})
		if got := refusedBy(err); !slices.Equal(got, []string{"default/s1"}) || !strings.Contains(err.Error(), "xt_recent") {
			t.Errorf("error: %v", err)
		}
	})
}
