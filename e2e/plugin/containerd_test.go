package plugin

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/e2e/place"
)

// TestContainerd has Debian's containerd, below ctr, connect a container by
// Fairlead: it answers, and leaves nothing when it ends.
func TestContainerd(t *testing.T) {
	for name, newSite := range map[string]func(*testing.T) *site{"bridge": bridged, "macvlan": onTheWire} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			const image = "localhost/server:1"
			c := newContainerd(t, s, image)
			server := netip.MustParseAddrPort("10.9.0.9:80")
			ended := c.Start(t, "ctr", "run", "--rm", "--cni", "--snapshotter=native", "--cgroup="+c.Cgroup,
				"--cap-add=CAP_NET_RAW", "--cap-add=CAP_NET_ADMIN", // the server makes raw sockets where the kernel has no SCTP
				image, "web", "/fairlead-lab", "serve", "web", server.String())
			answers(t, s.outside, server)
			c.Run(t, "ctr", "task", "kill", "--signal=SIGKILL", "web")
			_ = ended() // the status of what was killed
			s.isGone(t)
		})
	}
}

func newContainerd(t *testing.T, s *site, image string) *place.Containerd {
	t.Helper()
	dir := t.TempDir()
	files := map[string][]byte{
		"fairlead.conflist": marshal(t, object{"cniVersion": "1.0.0", "name": "fairlead", "plugins": []object{s.plugin}}),
		"image.tar":         newImage(t, image),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := place.NewContainerd(t, s.node.ns, fmt.Sprintf(`
		mkdir -p /etc/cni/net.d /opt/cni
		ln -s %s /opt/cni/bin
		cp %s/fairlead.conflist /etc/cni/net.d`, programs.Dir(t), dir))
	c.Import(t, filepath.Join(dir, "image.tar"))
	return c
}
