package plugin

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// facts are all that tells one state of the kernel from another: what → value.
// They say nothing that differs from run to run.
type facts map[string]string

// collect reads what the kernel has in a namespace, prefixed by where that is.
func (f facts) collect(t *testing.T, where string, ns *netns.NS, names *strings.Replacer) {
	t.Helper()
	f.collectLinks(t, where, names.Replace(ns.RunT(t, "ip", "-json", "-details", "addr")))
	for _, family := range []string{"-4", "-6"} {
		f.collectLines(where+" route", names.Replace(ns.RunT(t, "ip", family, "route", "show", "table", "all")))
		f.collectLines(where+" rule", ns.RunT(t, "ip", family, "rule"))
		f.collectLines(where+" neighbour", names.Replace(ns.RunT(t, "ip", family, "neigh")))
	}
	f.collectLines(where+" vlan", names.Replace(ns.RunT(t, "bridge", "-compressvlans", "-oneline", "vlan", "show")))
	if err := ns.Do(func() error { return f.collectSysctls(where+" sysctl ", names) }); err != nil {
		t.Fatal(err)
	}
}

// passing are the parts of a link that differ between runs of one and the same
// plugin: numbers that the kernel counts up, timers, what follows from a hardware
// address that was made up, and what the carrier changes a while later.
var passing = []string{
	"operstate", "NO-CARRIER", "LOWER_UP",
	"ifindex", "link_index", "link_netnsid", "hello_timer", "tcn_timer", "topology_change_timer", "gc_timer",
	"message_age_timer", "forward_delay_timer", "hold_timer", "bridge_id", "root_id", "designated_bridge", "valid_life_time", "preferred_life_time",
}

func (f facts) collectLinks(t *testing.T, where, text string) {
	t.Helper()
	var links []map[string]any
	if err := json.Unmarshal([]byte(text), &links); err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		f.flatten(fmt.Sprintf("%s link %s", where, l["ifname"]), l)
	}
}

// flatten turns a JSON value into facts, one for each value that is not made of
// others.
func (f facts) flatten(what string, value any) {
	switch value := value.(type) {
	case map[string]any:
		for key, v := range value {
			if !slices.Contains(passing, key) {
				f.flatten(what+" "+key, v)
			}
		}
	case []any:
		for i, v := range value {
			flag, ok := v.(string)
			if !ok {
				f.flatten(fmt.Sprintf("%s %d", what, i), v)
			} else if !slices.Contains(passing, flag) {
				f[what+" "+flag] = "set" // the order of flags says nothing
			}
		}
	default:
		f[what] = fmt.Sprint(value)
	}
}

// collectLines has each line for a fact, but for what comes and goes with the
// carrier, a while later: linkdown, and routes of multicast.
func (f facts) collectLines(what, text string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(strings.Join(strings.Fields(line), " "), " linkdown")
		if !strings.HasPrefix(line, "multicast ") {
			f[what+" "+line] = "there"
		}
	}
}

// collectSysctls reads, in the namespace of the calling thread, what there is for
// each interface and for all of them.
func (f facts) collectSysctls(what string, names *strings.Replacer) error {
	const root = "/proc/sys/"
	read := func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		value, err := os.ReadFile(path)
		if err != nil {
			return nil // not for reading, as stable_secret before it is set
		}
		f[what+names.Replace(strings.TrimPrefix(path, root))] = strings.TrimSpace(string(value))
		return nil
	}
	for _, dir := range []string{"net/ipv4/conf", "net/ipv6/conf", "net/ipv4/ip_forward"} {
		if err := filepath.WalkDir(root+dir, read); err != nil {
			return err
		}
	}
	return nil
}

// differing are the facts that two states do not have in common, in order.
func differing(a, b facts) []string {
	var keys []string
	for key, value := range a {
		if other, ok := b[key]; !ok || other != value {
			keys = append(keys, key)
		}
	}
	for key := range b {
		if _, ok := a[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
