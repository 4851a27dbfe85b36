package plugin

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
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
			p.run(t, "run", "--detach", "--name=web", "--network=fairlead", "--publish=8080:80", "--publish=[::]:8080:80",
				"--cap-add=all",                                         // the server makes raw sockets where the kernel has no SCTP
				"--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", // its defaults are more than some machines allow
				p.image, "/fairlead-lab", "serve", "web", server.String())
			for range 2 {
				answers(t, s.outside, server)
				for _, node := range s.nodes[:len(s.nodes)/2] { // by IPv4, as it serves
					answers(t, s.outside, netip.AddrPortFrom(node, 8080))
				}
				const address = `{{(index .NetworkSettings.Networks "fairlead").IPAddress}}`
				if got := p.run(t, "inspect", "--format", address, "web"); got != "10.9.0.9\n" {
					t.Errorf("podman knows the container by %q, want 10.9.0.9", got)
				}
				p.run(t, "restart", "--time=0", "web")
			}
			p.run(t, "rm", "--force", "--time=0", "web")
			s.isGone(t)
		})
	}
}

// podman is the program in a node, with a place of its own for all that it keeps.
type podman struct {
	place *place.Place
	dir   string
	image string
}

func newPodman(t *testing.T, s *site) *podman {
	t.Helper()
	for _, program := range []string{"podman", "crun"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("Debian's package %s is not installed", program)
		}
	}
	p := &podman{dir: t.TempDir(), image: "localhost/server:1"}
	p.configure(t, s.plugin)
	p.place = place.New(t, s.node.ns, `
		mount -t cgroup2 none /sys/fs/cgroup; mount -t tmpfs none /var/lib; mount -t tmpfs none /run; mkdir /run/netns`)
	if backend := p.run(t, "info", "--format", "{{.Host.NetworkBackend}}"); backend != "cni\n" {
		t.Skipf("this podman has no CNI, but %s", backend)
	}
	p.run(t, "import", p.writeImage(t), p.image)
	return p
}

func (p *podman) configure(t *testing.T, plugin object) {
	t.Helper()
	list, err := json.Marshal(object{"cniVersion": "1.0.0", "name": "fairlead", "plugins": []object{plugin, portmap("iptables")}})
	if err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf(`
[network]
network_backend = "cni"
network_config_dir = %q
cni_plugin_dirs = [%q, %q]
default_network = "fairlead"
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
`, p.dir, programs.Dir(t), refplugins.Dir(t))
	for name, text := range map[string][]byte{"fairlead.conflist": list, "containers.conf": []byte(conf)} {
		if err := os.WriteFile(filepath.Join(p.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// run runs a command of podman's and returns what it printed.
func (p *podman) run(t *testing.T, args ...string) string {
	t.Helper()
	return p.place.Run(t, append([]string{
		"env", "CONTAINERS_CONF=" + filepath.Join(p.dir, "containers.conf"),
		"podman", "--root", filepath.Join(p.dir, "root"), "--runroot", "/run/podman", "--tmpdir", "/run/podman", "--storage-driver=vfs",
	}, args...)...)
}

// writeImage makes an image of one static program, and returns where it is.
func (p *podman) writeImage(t *testing.T) string {
	t.Helper()
	path := filepath.Join(p.dir, "image.tar")
	if err := os.WriteFile(path, newLayer(t), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

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
