package ebpf

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ebpf/pins"
)

// attachFilter makes program, or with nil none, the filter on a side of a link.
func attachFilter(kernel *netlink.Handle, index int, side side, program *ebpf.Program) error {
	filter := pins.Filter(index, filterParent(side))
	if program != nil {
		return pins.AttachFilter(kernel, filter, program.FD())
	}
	err := kernel.FilterDel(filter)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return nil // no such filter, or no discipline
	}
	return err
}

func filterParent(side side) uint32 {
	if side.attach == ebpf.AttachTCXIngress {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

// hasFilter looks for our filter. A link that is gone has no need of it.
func hasFilter(kernel *netlink.Handle, index int, side side) bool {
	filters, err := kernel.FilterList(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, filterParent(side))
	return errors.Is(err, unix.ENODEV) || slices.ContainsFunc(filters, func(f netlink.Filter) bool {
		return f.Attrs().Priority == pins.FilterPriority && f.Type() == "bpf"
	})
}

// removeFilters takes our filters off all links of the network namespace of the
// calling thread. The disciplines stay: others may use them.
func removeFilters() error {
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer kernel.Close()
	all, err := kernel.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range all {
		for _, side := range sides {
			if err := ignoreGone(attachFilter(kernel, l.Attrs().Index, side, nil)); err != nil {
				return fmt.Errorf("remove the filter from link %s: %w", l.Attrs().Name, err)
			}
		}
	}
	return nil
}
