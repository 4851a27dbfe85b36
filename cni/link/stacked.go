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
	found := ns.stacked(func(l *netlink.LinkAttrs) bool {
		return l.ParentIndex == d.Index && l.NetNsID == -1
	}, "the host")
	seen := []*NS{ns}
	paths, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, path := range paths {
		other, err := Open(path)
		if err != nil {
			continue // the process went
		}
		defer other.Close()
		if slices.ContainsFunc(seen, other.Same) {
			continue
		}
		seen = append(seen, other)
		id, err := other.netlink.GetNetNsIdByFd(int(ns.file))
		if err != nil || id < 0 {
			continue // nothing in it leads here
		}
		found = append(found, other.stacked(func(l *netlink.LinkAttrs) bool {
			return l.ParentIndex == d.Index && l.NetNsID == id
		}, process(path))...)
	}
	return found
}

// stacked describes the interfaces of a namespace that on selects.
func (ns *NS) stacked(on func(*netlink.LinkAttrs) bool, where string) []string {
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
