package plugin

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/place"
	"github.com/fairlead/fairlead/e2e/refplugins"
)

// TestPodman has a container runtime that people use, Debian's podman, connect a
// container by Fairlead: it answers, also after a restart, and leaves nothing.
func TestPodman(t *testing.T) {
	for name, newSite := range map[string]func(*testing.T) *site{"bridge": bridged, "macvlan": onTheWire} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			p := newPodman(t, s)
			server := netip.MustParseAddrPort("10.9.0.9:80")
			p.Podman(t, "run", "--detach", "--name=web", "--network=fairlead", "--publish=8080:80", "--publish=[::]:8080:80",
				"--cap-add=all",                                         // the server makes raw sockets where the kernel has no SCTP
				"--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", // its defaults are more than some machines allow
				serverImage, "/fairlead-lab", "serve", "web", server.String())
			for range 2 {
				answers(t, s.outside, server)
				for _, node := range s.nodes[:len(s.nodes)/2] { // by IPv4, as it serves
					answers(t, s.outside, netip.AddrPortFrom(node, 8080))
				}
				const address = `{{(index .NetworkSettings.Networks "fairlead").IPAddress}}`
				if got := p.Podman(t, "inspect", "--format", address, "web"); got != "10.9.0.9\n" {
					t.Errorf("podman knows the container by %q, want 10.9.0.9", got)
				}
				p.Podman(t, "restart", "--time=0", "web")
			}
			p.Podman(t, "rm", "--force", "--time=0", "web")
			s.isGone(t)
		})
	}
}

// newPodman has podman connect containers by the site's plugin.
func newPodman(t *testing.T, s *site) *place.Podman {
	t.Helper()
	dir := t.TempDir()
	list := marshal(t, object{"cniVersion": "1.0.0", "name": "fairlead", "plugins": []object{s.plugin, portmap("iptables")}})
	if err := os.WriteFile(filepath.Join(dir, "fairlead.conflist"), list, 0o600); err != nil {
		t.Fatal(err)
	}
	p := place.NewPodman(t, s.node.ns, fmt.Sprintf(`
[network]
network_backend = "cni"
network_config_dir = %q
cni_plugin_dirs = [%q, %q]
default_network = "fairlead"
`, dir, programs.Dir(t), refplugins.Dir(t)))
	if backend := p.Podman(t, "info", "--format", "{{.Host.NetworkBackend}}"); backend != "cni\n" {
		t.Skipf("this podman has no CNI, but %s", backend)
	}
	layer := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(layer, newLayer(t), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Podman(t, "import", layer, serverImage)
	return p
}

const serverImage = "localhost/server:1"

// answers connects until a server that is just starting accepts.
func answers(t *testing.T, from *netns.NS, server netip.AddrPort) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); {
		err = from.Do(func() error {
			client, err := net.DialTimeout("tcp", server.String(), patience)
			if err == nil {
				err = client.Close()
			}
			return err
		})
		if err == nil {
			return
		}
	}
	t.Errorf("connect to %s: %v", server, err)
}
