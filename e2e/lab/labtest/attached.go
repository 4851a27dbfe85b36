package labtest

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Attached counts the programs at the links of a node, by tcx or as filters, and at its
// cgroup.
func Attached(t *testing.T, node *lab.Node) (packets, sockets int) {
	t.Helper()
	count := func(target int, attach ebpf.AttachType) int {
		found, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
		if errors.Is(err, ebpf.ErrNotSupported) { // tcx, before kernel 6.6
			return 0
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(found.Programs)
	}
	err := node.NS().Do(func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			index := l.Attrs().Index
			packets += count(index, ebpf.AttachTCXIngress) + count(index, ebpf.AttachTCXEgress) +
				filters(t, l, netlink.HANDLE_MIN_INGRESS) + filters(t, l, netlink.HANDLE_MIN_EGRESS)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(node.Cgroup())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = folder.Close() }()
	for _, attach := range []ebpf.AttachType{
		ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCgroupInetSockRelease,
		ebpf.AttachCGroupUDP4Sendmsg, ebpf.AttachCGroupUDP6Sendmsg, ebpf.AttachCGroupUDP4Recvmsg, ebpf.AttachCGroupUDP6Recvmsg,
	} {
		sockets += count(int(folder.Fd()), attach)
	}
	return packets, sockets
}

// filters counts the programs that are filters on a side of a link.
func filters(t *testing.T, l netlink.Link, side uint32) (programs int) {
	t.Helper()
	all, err := netlink.FilterList(l, side)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.Type() == "bpf" && f.Attrs().Handle != 0 { // 0: all of a priority
			programs++
		}
	}
	return programs
}
