package plugin

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// TestGC has libcni collect after a runtime that forgot a pod and what it knew of
// it, as after a crash: from a list of one pod, and from the list of none.
func TestGC(t *testing.T) {
	for name, newSite := range map[string]func(*testing.T) *site{"bridge": bridged, "macvlan": onTheWire} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.plugin["ipam"].(object)["ranges"] = [][]object{{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.8", "rangeEnd": "10.9.0.9"}}}
			list := newList(t, s.plugin)
			kept, lost := newPod(t, "kept"), newPod(t, "lost")
			s.node.add(t, list, kept)
			s.node.add(t, list, lost)
			s.node.cni = newRuntime(t, s.node.ns) // with nothing in its cache
			valid := []types.GCAttachment{{ContainerID: "kept", IfName: "eth0"}}
			if err := s.node.cni.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
				t.Fatal(err)
			}
			s.says(t, kept.ns, "10.9.0.8/24", "ip", "addr", "show", "eth0")
			next := newPod(t, "next")
			s.node.add(t, list, next)
			s.says(t, next.ns, "10.9.0.9/24", "ip", "addr", "show", "eth0")

			s.node.cni = newRuntime(t, s.node.ns)
			if err := s.node.cni.GCNetworkList(t.Context(), list, &libcni.GCArgs{}); err != nil {
				t.Fatal(err)
			}
			if links := s.node.ns.RunT(t, "ip", "-brief", "link"); strings.Contains(links, "veth") {
				t.Errorf("ports are left:\n%s", links)
			}
			s.node.add(t, list, newPod(t, "one"))
			s.node.add(t, list, newPod(t, "two"))
		})
	}
}
