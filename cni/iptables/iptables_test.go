package iptables

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/e2e/netns"
)

func owner(id string) mode.Owner { return mode.Owner{Network: "net", ContainerID: id, IfName: "eth0"} }

var spared = []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24"), netip.MustParsePrefix("fd09::/64")}

func masquerade(id string, pod ...string) func() error {
	return func() error {
		var addrs []netip.Addr
		for _, addr := range pod {
			addrs = append(addrs, netip.MustParseAddr(addr))
		}
		return Masquerade(owner(id), addrs, spared)
	}
}

// TestRules looks at the rules of ours after some steps, with both of the
// programs that are called iptables.
func TestRules(t *testing.T) {
	chain := networkChain("net", spared)
	entrance := []string{"-N " + podChain, "-A POSTROUTING -j " + podChain}
	shared4 := []string{
		entrance[0], entrance[1], "-N " + chain,
		"-A " + chain + " -d 10.9.0.0/24 -j RETURN", "-A " + chain + " -d 224.0.0.0/4 -j RETURN", "-A " + chain + " -j MASQUERADE",
	}
	rule := func(id, addr string) string {
		return "-A " + podChain + " -s " + addr + ` -m comment --comment "net/` + id + `/eth0" -j ` + chain
	}
	tests := map[string]struct {
		steps []func() error
		want  []string // of IPv4
	}{
		"two pods":     {[]func() error{masquerade("a", "10.9.0.2", "fd09::2"), masquerade("b", "10.9.0.3")}, with(shared4, rule("a", "10.9.0.2/32"), rule("b", "10.9.0.3/32"))},
		"twice":        {[]func() error{masquerade("a", "10.9.0.2"), masquerade("a", "10.9.0.2")}, with(shared4, rule("a", "10.9.0.2/32"))},
		"a new owner":  {[]func() error{masquerade("lost", "10.9.0.2"), masquerade("new", "10.9.0.2")}, with(shared4, rule("new", "10.9.0.2/32"))},
		"stopped":      {[]func() error{masquerade("a", "10.9.0.2"), func() error { return Stop(owner("a")) }}, shared4},
		"never begun":  {[]func() error{func() error { return Stop(owner("a")) }, func() error { return Collect("net", nil) }}, nil},
		"all of them":  {[]func() error{masquerade("a", "10.9.0.2"), func() error { return Collect("net", nil) }}, entrance},
		"of another":   {[]func() error{masquerade("a", "10.9.0.2"), func() error { return Collect("other", nil) }}, with(shared4, rule("a", "10.9.0.2/32"))},
		"all but some": {[]func() error{masquerade("a", "10.9.0.2"), masquerade("b", "10.9.0.3"), func() error { return Collect("net", []mode.Owner{owner("b")}) }}, with(shared4, rule("b", "10.9.0.3/32"))},
	}
	for _, variant := range []string{"nft", "legacy"} {
		use(t, variant)
		for name, tt := range tests {
			t.Run(variant+"/"+name, func(t *testing.T) {
				ns := netns.NewT(t)
				for _, step := range tt.steps {
					if err := ns.Do(step); err != nil {
						t.Fatal(err)
					}
				}
				var got []string
				for line := range strings.Lines(ns.RunT(t, "iptables", "-t", "nat", "-S")) {
					if strings.Contains(line, podChain) {
						got = append(got, strings.TrimSpace(line))
					}
				}
				want := slices.Sorted(slices.Values(tt.want))
				if diff := cmp.Diff(want, slices.Sorted(slices.Values(got))); diff != "" {
					t.Errorf("rules (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// with is a list with more at its end.
func with(list []string, more ...string) []string { return slices.Concat(list, more) }

// use has iptables be one of its two variants.
func use(t *testing.T, variant string) {
	t.Helper()
	dir := t.TempDir()
	for _, program := range []string{"iptables", "iptables-restore", "ip6tables", "ip6tables-restore"} {
		base, verb, _ := strings.Cut(program, "-")
		name := base + "-" + variant
		if verb != "" {
			name += "-" + verb
		}
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, program)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestWithoutPrograms is a node that never had iptables: there is nothing to
// remove, and nothing that could masquerade.
func TestWithoutPrograms(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Stop(owner("a")); err != nil {
		t.Error(err)
	}
	if err := Collect("net", nil); err != nil {
		t.Error(err)
	}
	if err := masquerade("a", "10.9.0.2")(); err == nil || !strings.Contains(err.Error(), "masquerade net/a/eth0: ") {
		t.Errorf("error %v", err)
	}
}
