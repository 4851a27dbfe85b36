package link

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/cni/host/namespaces"
)

// stackedKinds are the drivers that take all frames of the interface below, so
// that it can have those of one driver only.
var stackedKinds = []string{"macvlan", "macvtap", "ipvlan", "ipvtap"}

// StackedOn describes, for people, the interfaces that have taken over d: those
// in its own namespace and in others. It is for the text of
// an error, since only a look into every namespace finds them: the kernel lists
// what an interface is stacked on, not what is stacked on it.
func (ns *NS) StackedOn(d Device) []string {
	found := ns.stacked("the host", func(l *netlink.LinkAttrs) bool {
		return l.ParentIndex == d.Index && l.NetNsID == -1
	})
	all, _ := namespaces.All() // as far as they are to be seen
	for _, other := range all {
		found = append(found, ns.stackedIn(other, d)...)
	}
	return found
}

// stackedIn looks into another namespace.
func (ns *NS) stackedIn(in namespaces.Namespace, d Device) []string {
	other, err := Open(in.Path)
	if err != nil {
		return nil // it went
	}
	defer other.Close()
	if other.Same(ns) {
		return nil
	}
	id, err := other.netlink.GetNetNsIdByFd(int(ns.file))
	if err != nil || id < 0 {
		return nil // nothing in it leads here
	}
	return other.stacked(whose(in), func(l *netlink.LinkAttrs) bool {
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

// whose names the process that is in a namespace, or the namespace if none is known.
func whose(in namespaces.Namespace) string {
	if len(in.Processes) == 0 {
		return in.Path
	}
	pid := in.Processes[0]
	command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(command)))
}
