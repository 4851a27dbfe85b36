package link

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// stackedKinds are the drivers that take all frames of the interface below, so
// that it can have those of one driver only.
var stackedKinds = []string{"macvlan", "macvtap", "ipvlan", "ipvtap"}

// StackedOn describes, for people, the interfaces that have taken over d: those
// in its own namespace and in the namespaces of processes. It is for the text of
// an error, since only a look into every namespace finds them: the kernel lists
// what an interface is stacked on, not what is stacked on it.
func (ns *NS) StackedOn(d Device) []string {
	found := ns.stacked("the host", func(l *netlink.LinkAttrs) bool {
		return l.ParentIndex == d.Index && l.NetNsID == -1
	})
	seen := map[string]bool{} // by what the links below /proc lead to: net:[4026531840]
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range paths {
		target, err := os.Readlink(path)
		if err != nil || seen[target] { // the process went, or shares its namespace
			continue
		}
		seen[target] = true
		found = append(found, ns.stackedIn(path, d)...)
	}
	return found
}

// stackedIn looks into the namespace of a process.
func (ns *NS) stackedIn(path string, d Device) []string {
	other, err := Open(path)
	if err != nil {
		return nil // the process went
	}
	defer other.Close()
	if other.Same(ns) {
		return nil
	}
	id, err := other.netlink.GetNetNsIdByFd(int(ns.file))
	if err != nil || id < 0 {
		return nil // nothing in it leads here
	}
	return other.stacked(process(path), func(l *netlink.LinkAttrs) bool {
		return l.ParentIndex == d.Index && l.NetNsID == id
	})
}

// stacked describes the interfaces of a namespace that on selects.
func (ns *NS) stacked(where string, on func(*netlink.LinkAttrs) bool) []string {
	all, err := retry(ns.netlink.LinkList)
	if err != nil {
		return nil
	}
	var found []string
	for _, l := range all {
		if slices.Contains(stackedKinds, l.Type()) && on(l.Attrs()) {
			found = append(found, fmt.Sprintf("%s %s of %s", l.Type(), l.Attrs().Name, where))
		}
	}
	return found
}

// process names the process that /proc/PID/ns/net belongs to.
func process(path string) string {
	dir := filepath.Dir(filepath.Dir(path))
	command, _ := os.ReadFile(filepath.Join(dir, "comm"))
	return fmt.Sprintf("process %s (%s)", filepath.Base(dir), strings.TrimSpace(string(command)))
}
