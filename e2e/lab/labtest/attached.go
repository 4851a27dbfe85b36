package labtest

import (
	"errors"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Attached counts the programs at the links of a node, by tcx or as filters, and at its
// cgroup.
func Attached(t *testing.T, node *lab.Node) (packets, sockets int) {
	t.Helper()
	err := node.NS().Do(func() (err error) {
		packets, err = atLinks()
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
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(folder.Fd()), Attach: attach})
		if err != nil {
			t.Fatal(err)
		}
		sockets += len(found.Programs)
	}
	return packets, sockets
}

// atLinks counts the programs at all links of the network namespace of the calling
// thread.
func atLinks() (programs int, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return 0, err
	}
	for _, l := range links {
		for tcx, side := range map[ebpf.AttachType]uint32{
			ebpf.AttachTCXIngress: netlink.HANDLE_MIN_INGRESS,
			ebpf.AttachTCXEgress:  netlink.HANDLE_MIN_EGRESS,
		} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: tcx})
			if err == nil {
				programs += len(found.Programs)
			} else if !errors.Is(err, unix.EINVAL) { // the kernel has no tcx (6.6)
				return 0, err
			}
			filters, err := netlink.FilterList(l, side)
			if err != nil {
				return 0, err
			}
			for _, f := range filters {
				if f.Type() == "bpf" && f.Attrs().Handle != 0 { // 0: all of a priority
					programs++
				}
			}
		}
	}
	return programs, nil
}
