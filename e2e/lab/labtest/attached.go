package labtest

import (
	"net"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/fairlead/fairlead/e2e/lab"
)

// Attached counts the programs at the links of a node, and at its cgroup.
func Attached(t *testing.T, node *lab.Node) (packets, sockets int) {
	t.Helper()
	count := func(target int, attach ebpf.AttachType) int {
		found, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
		if err != nil {
			t.Fatal(err)
		}
		return len(found.Programs)
	}
	err := node.NS().Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			packets += count(l.Index, ebpf.AttachTCXIngress) + count(l.Index, ebpf.AttachTCXEgress)
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
