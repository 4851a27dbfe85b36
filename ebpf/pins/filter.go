package pins

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FilterPriority is the place of our filters among the others of a link.
const FilterPriority = 0x666c

// Filter is ours on a side of a link, HANDLE_MIN_INGRESS or HANDLE_MIN_EGRESS of netlink,
// without its program. Before kernel 6.6 programs are filters of the queueing discipline
// clsact, which does nothing else.
func Filter(index int, side uint32) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index,
			Parent:    side,
			Handle:    1,
			Protocol:  unix.ETH_P_ALL,
			Priority:  FilterPriority,
		},
		Name:         "fairlead",
		DirectAction: true,
	}
}

// AttachFilter makes a program, given by its descriptor, that of a filter, in one step.
// The first filter of a link costs packets: with a new discipline the kernel drops for
// some milliseconds what the link is to send (qdisc_graft, by way of dev_deactivate).
func AttachFilter(kernel *netlink.Handle, filter *netlink.BpfFilter, program int) error {
	err := kernel.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: filter.LinkIndex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	})
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("add clsact: %w", err)
	}
	filter.Fd = program
	return kernel.FilterReplace(filter)
}

// filterPort makes the program the filter for what comes in by a port, in the network
// namespace of the calling thread.
func filterPort(program, index int) error {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer kernel.Close()
	return AttachFilter(kernel, Filter(index, netlink.HANDLE_MIN_INGRESS), program)
}
