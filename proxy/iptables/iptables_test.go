package iptables

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/cni/host/command"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// everyVariant runs a test with each kind of iptables in a namespace of its own.
func everyVariant(t *testing.T, test func(t *testing.T, n *node)) {
	for _, variant := range []string{"legacy", "nft"} {
		t.Run(variant, func(t *testing.T) {
			n := &node{NS: netns.NewT(t), t: t, variant: variant}
			n.backend = n.start()
			test(t, n)
		})
	}
}

// node is a namespace with a backend.
type node struct {
	*netns.NS
	t       *testing.T
	variant string
	backend *Backend
	// counters are Config's for the next start.
	counters int
}

// start is a process that starts: a Backend that knows nothing yet.
func (n *node) start() *Backend {
	n.t.Helper()
	var b *Backend
	err := n.Do(func() (err error) {
		b, err = New(Config{Variant: n.variant, MasqueradeMark: 0x4000, Counters: n.counters})
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	if len(b.Missing()) > 0 {
		n.t.Fatal(b.Missing())
	}
	return b
}

func (n *node) sync(t *service.Table, change service.Change) error {
	return n.Do(func() error { return n.backend.Sync(n.t.Context(), t, change) })
}

func (n *node) mustSync(t *service.Table, change service.Change) {
	n.t.Helper()
	if err := n.sync(t, change); err != nil {
		n.t.Fatal(err)
	}
}

// ours is what the kernel has of our rules.
func (n *node) ours() string {
	n.t.Helper()
	var out strings.Builder
	err := n.Do(func() error {
		for _, f := range n.backend.families {
			rs, err := f.read(n.t.Context())
			if err != nil {
				return err
			}
			fmt.Fprintf(&out, "IPv6 %v\n%s", f.ipv6, rs)
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return out.String()
}

func rendered(t *service.Table) string {
	return fmt.Sprintf("IPv6 false\n%sIPv6 true\n%s", Render(t, false, opts), Render(t, true, opts))
}

// save is everything that the kernel has, less counters and comments.
func (n *node) save() string {
	n.t.Helper()
	var lines []string
	for _, cmd := range []string{"iptables-" + n.variant + "-save", "ip6tables-" + n.variant + "-save"} {
		for line := range strings.Lines(n.RunT(n.t, cmd)) {
			if !strings.HasPrefix(line, "#") {
				line, _, _ = strings.Cut(line, " [")
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return strings.Join(lines, "\n")
}

func TestSyncFromOneTableToAnother(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		all := tables()
		everything := service.Change{Node: true}
		for _, name := range []string{"typical", "external", "by-sender", "sticky", "wide", "compatible", "by-interface", "tree", "empty", "tree", "typical"} {
			n.mustSync(all[name], everything)
			if diff := cmp.Diff(rendered(all[name]), n.ours()); diff != "" {
				t.Errorf("%s (-rendered +kernel):\n%s", name, diff)
			}
		}
	})
}

// With so many chains that iptables-nft takes several steps.
func TestSyncInSteps(t *testing.T) {
	n := &node{NS: netns.NewT(t), t: t, variant: NFT}
	n.backend = n.start()
	all := tables()
	for _, name := range []string{"tree", "external", "sticky", "tree", "empty"} {
		for _, f := range n.backend.families {
			f.chainsPerStep = 2
		}
		n.mustSync(all[name], service.Change{Node: true})
		if diff := cmp.Diff(rendered(all[name]), n.ours()); diff != "" {
			t.Errorf("%s (-rendered +kernel):\n%s", name, diff)
		}
	}
}

func TestSyncOfOnePool(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		one, two := resolved(20, 2), resolved(20, 3)
		n.mustSync(one, service.Change{})
		change := service.Change{}
		for id := range two.Pools {
			change.Pools = append(change.Pools, id)
		}
		n.mustSync(two, change)
		if diff := cmp.Diff(rendered(two), n.ours()); diff != "" {
			t.Errorf("(-rendered +kernel):\n%s", diff)
		}
	})
}

// A process that starts finds the rules of the one before as it would write
// them, and writes nothing: turns and flows go on.
func TestRestartWritesNothing(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		for name, table := range tables() {
			n.mustSync(table, service.Change{Node: true})
			n.backend = n.start()
			for _, f := range n.backend.families {
				f.restoreCmd = "/nonexistent/iptables-restore"
			}
			if err := n.sync(table, service.Change{}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			n.backend = n.start()
		}
	})
}

func TestMendsWhatOthersBroke(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		table := resolved(20, 3)
		n.mustSync(table, service.Change{})
		iptables := "iptables-" + n.variant
		n.RunT(t, iptables, "-t", "nat", "-F", "PREROUTING")
		n.RunT(t, iptables, "-t", "nat", "-F", chainOutside)
		n.RunT(t, iptables, "-t", "nat", "-A", "OUTPUT", "-m", "comment", "--comment", "Fairlead", "-j", chainServices)
		n.RunT(t, iptables, "-t", "nat", "-N", prefix+"STALE")
		n.backend = n.start()
		n.mustSync(table, service.Change{})
		if diff := cmp.Diff(rendered(table), n.ours()); diff != "" {
			t.Errorf("(-rendered +kernel):\n%s", diff)
		}
	})
}

// What decides before our rules would decide for Services.
func TestOurRulesGoFirst(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		iptables := "iptables-" + n.variant
		n.RunT(t, iptables, "-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT")
		n.mustSync(resolved(1, 1), service.Change{})
		rules := strings.Split(n.RunT(t, iptables, "-t", "nat", "-S", "PREROUTING"), "\n")
		if len(rules) < 3 || !strings.Contains(rules[1], chainServices) || !strings.Contains(rules[2], "ACCEPT") {
			t.Errorf("%q", rules)
		}
	})
}

// Somebody flushed a table: Intact notices, and the next Sync mends it.
func TestIntact(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		table := resolved(3, 1)
		expect := func(want bool) {
			t.Helper()
			for _, f := range n.backend.families {
				f.looked = time.Time{} // long ago
			}
			var got bool
			err := n.Do(func() (err error) {
				got, err = n.backend.Intact()
				return err
			})
			if err != nil || got != want {
				t.Errorf("intact: %v, %v; want %v", got, err, want)
			}
		}
		expect(true) // nothing was programmed yet
		n.mustSync(table, service.Change{})
		expect(true)
		for _, flush := range [][]string{{"-t", "nat", "-F"}, {"-t", "filter", "-F", "FORWARD"}} {
			n.RunT(t, "iptables-"+n.variant, flush...)
			expect(false)
			n.mustSync(table, service.Change{})
			expect(true)
			if diff := cmp.Diff(rendered(table), n.ours()); diff != "" {
				t.Errorf("(-rendered +kernel):\n%s", diff)
			}
		}
	})
}

func TestCleanupLeavesOthersAlone(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		iptables := "iptables-" + n.variant
		n.RunT(t, iptables, "-t", "nat", "-N", "OTHER")
		n.RunT(t, iptables, "-t", "nat", "-A", "PREROUTING", "-j", "OTHER")
		n.RunT(t, iptables, "-t", "nat", "-A", "OTHER", "-p", "tcp", "-j", "RETURN")
		n.RunT(t, iptables, "-A", "FORWARD", "-m", "comment", "--comment", "not -j FAIRLEAD-X", "-j", "ACCEPT")
		for _, table := range []string{nat, filter} { // iptables-nft makes a table when it is first named
			n.RunT(t, "ip6"+iptables[len("ip"):], "-t", table, "-A", "OUTPUT", "-j", "RETURN")
		}
		before := n.save()
		n.mustSync(resolved(20, 3), service.Change{})
		if n.save() == before {
			t.Fatal("Sync wrote nothing")
		}
		n.backend = n.start()
		for range 2 {
			if err := n.Do(func() error { return n.backend.Cleanup(t.Context()) }); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(before, n.save()); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

// What iptables-restore refuses changes nothing, the error names the Services and
// quotes the line, and the next Sync starts from what the kernel has.
func TestRefusedRules(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		good, bad := resolved(3, 1), resolved(3, 2)
		n.mustSync(good, service.Change{})
		for id, pool := range bad.Pools {
			if id.Service.Name == "s1" {
				pool.Protocol = 0
				bad.Pools[id] = pool
			}
		}
		err := n.sync(bad, service.Change{Node: true})
		if got := refusedBy(err); !slices.Equal(got, []string{"default/s1"}) || !strings.Contains(err.Error(), "the line is: -A "+prefix+"P-") {
			t.Errorf("error: %v", err)
		}
		n.mustSync(resolved(3, 3), service.Change{})
		if diff := cmp.Diff(rendered(resolved(3, 3)), n.ours()); diff != "" {
			t.Errorf("after the mend (-rendered +kernel):\n%s", diff)
		}
	})
}

// refusedBy are the Services that an error names.
func refusedBy(err error) []string {
	var refused *service.RefusedError
	if !errors.As(err, &refused) {
		return nil
	}
	var out []string
	for _, name := range slices.SortedFunc(maps.Keys(refused.Services), service.Name.Compare) {
		out = append(out, name.String())
	}
	return out
}

// Some things only the kernel refuses, and at the end: here that more packets are
// to be remembered than it can, of Services with an affinity of four hours. Those
// are found among many, in a first Sync and when only they change, and with them
// out of the way all is as it should be.
func TestRefusedByTheKernel(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		sticky := func(affinity map[string]time.Duration) *service.Table {
			table := resolved(40, 2)
			for id, pool := range table.Pools {
				pool.Affinity = affinity[id.Service.Name]
				table.Pools[id] = pool
			}
			return table
		}
		for _, f := range n.backend.families {
			f.restoreCmd = wrapped(t, "sed 's/--seconds 14400 /&--hitcount 70000 /'", f.restoreCmd)
		}
		for _, change := range []service.Change{{}, {Node: true}} {
			culprits := map[string]time.Duration{"s4": 4 * time.Hour, "s24": 4 * time.Hour, "s36": time.Hour}
			table := sticky(culprits)
			found := map[string]bool{}
			for len(found) < 3 { // both at once, or one by one where lines are named
				refused := refusedBy(n.sync(table, change))
				if len(refused) == 0 {
					break
				}
				for _, name := range refused {
					found[name] = true
					delete(culprits, strings.TrimPrefix(name, "default/"))
				}
				table = sticky(culprits)
			}
			if diff := cmp.Diff([]string{"default/s24", "default/s4"}, slices.Sorted(maps.Keys(found))); diff != "" {
				t.Error(diff)
			}
			n.mustSync(table, change)
			if diff := cmp.Diff(rendered(table), n.ours()); diff != "" {
				t.Errorf("without them (-rendered +kernel):\n%s", diff)
			}
		}
		table := sticky(map[string]time.Duration{"s4": 4 * time.Hour})
		for id := range table.Pools { // one pool alone
			if id.Service.Name == "s4" && !id.IPv6 {
				err := n.sync(table, service.Change{Pools: []service.PoolID{id}})
				if got := refusedBy(err); !slices.Equal(got, []string{"default/s4"}) {
					t.Errorf("change of one pool: %v", err)
				}
			}
		}
	})
}

// wrapped is a command to whose input something is done before.
func wrapped(t *testing.T, filter, command string) string {
	t.Helper()
	return fakeIPTables(t, fmt.Sprintf("%s | %s \"$@\"", filter, command))
}

// fakeIPTables is a command that does something else than iptables.
func fakeIPTables(t *testing.T, does string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "iptables")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+does+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// A failure that is no Service's fault names none, also where a single Service changes.
func TestFailureOfNobody(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		n.mustSync(resolved(3, 1), service.Change{})
		for _, f := range n.backend.families {
			f.restoreCmd = "/bin/false"
		}
		table := resolved(3, 2)
		for id := range table.Pools {
			if err := n.sync(table, service.Change{Pools: []service.PoolID{id}}); err == nil || refusedBy(err) != nil {
				t.Errorf("a change of one pool: %v", err)
			}
			break
		}
		if err := n.sync(table, service.Change{Node: true}); err == nil || refusedBy(err) != nil {
			t.Errorf("a change of the node: %v", err)
		}
	})
}

// What hangs is ended, with what it has started. It is told, and the next round does it
// anew, also if the kernel had taken what was written before.
func TestHangs(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		table := resolved(3, 1)
		for _, first := range []string{"", "real \"$@\"; "} {
			var hung []bool
			restores := map[*family]string{}
			for _, f := range n.backend.families {
				restores[f] = f.restoreCmd
				f.restoreCmd = fakeIPTables(t, strings.Replace(first, "real", f.restoreCmd, 1)+"sleep 3600; true")
				f.patience = time.Second
				f.report = func(r Round) { hung = append(hung, r.Hung && r.Failed) }
			}
			err := n.sync(table, service.Change{Node: true})
			if !errors.Is(err, command.ErrHung) || refusedBy(err) != nil || !slices.Equal(hung, []bool{true, true}) {
				t.Errorf("error %v, told: %v", err, hung)
			}
			for f, path := range restores {
				f.restoreCmd, f.patience = path, patience
			}
			n.mustSync(table, service.Change{})
			if diff := cmp.Diff(rendered(table), n.ours()); diff != "" {
				t.Errorf("after that (-rendered +kernel):\n%s", diff)
			}
			table = resolved(5, 2)
		}
	})
}

func TestNewWithoutIptables(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := New(Config{})
	if err == nil || !strings.Contains(err.Error(), "apt-get install iptables") {
		t.Errorf("error: %v", err)
	}
	_, err = New(Config{Variant: "x"})
	if err == nil || !strings.Contains(err.Error(), "allowed are legacy, nft") {
		t.Errorf("error: %v", err)
	}
}

// A change of one Service leaves the turns of the others as they are. (Not with
// iptables-legacy, which writes the whole table each time, and with it the
// kernel's counters anew.)
func TestTurnsSurviveOtherServices(t *testing.T) {
	n := &node{NS: netns.NewT(t), t: t, variant: "nft"}
	n.backend = n.start()
	table := resolved(5, 3)
	n.mustSync(table, service.Change{})
	before := n.RunT(t, "nft", "-a", "list", "table", "ip", "nat")
	ids := slices.SortedFunc(maps.Keys(table.Pools), service.PoolID.Compare)
	changed := table.Pools[ids[0]]
	changed.Backends = changed.Backends[:2]
	table.Pools[ids[0]] = changed
	n.mustSync(table, service.Change{Pools: ids[:1]})
	after := n.RunT(t, "nft", "-a", "list", "table", "ip", "nat")
	for _, id := range ids {
		if id.IPv6 {
			continue
		}
		kept := handles(before, poolChain(id)) == handles(after, poolChain(id))
		if kept != (id != ids[0]) {
			t.Errorf("%s: rules kept: %v", id, kept)
		}
	}
}

// handles are the kernel's numbers of the rules of a chain.
func handles(listing, chain string) string {
	_, rest, _ := strings.Cut(listing, "chain "+chain+" ")
	body, _, _ := strings.Cut(rest, "\n\t}")
	var out []string
	for line := range strings.Lines(body) {
		if _, handle, ok := strings.Cut(line, "# handle "); ok {
			out = append(out, strings.TrimSpace(handle))
		}
	}
	return strings.Join(out, " ")
}
