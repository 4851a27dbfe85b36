package place

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Podman is the program in a node.
type Podman struct {
	*Place
	dir string
}

// podmanConfig is for a machine without systemd, whose control groups are others'.
const podmanConfig = `
[engine]
runtime = "crun"
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
`

// NewPodman has Debian's podman keep all that it has in a place of its own. network is
// its configuration's section of that name, in TOML.
func NewPodman(t *testing.T, node *netns.NS, network string) *Podman {
	t.Helper()
	for _, program := range []string{"podman", "crun"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("Debian's package %s is not installed", program)
		}
	}
	p := &Podman{dir: t.TempDir()}
	if err := os.WriteFile(p.config(), []byte(network+podmanConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Place = New(t, node, `
		mount -t cgroup2 none /sys/fs/cgroup; mount -t tmpfs none /var/lib; mount -t tmpfs none /run; mkdir /run/netns`)
	return p
}

func (p *Podman) config() string { return filepath.Join(p.dir, "containers.conf") }

// Podman runs a command of podman's and returns what it printed.
func (p *Podman) Podman(t *testing.T, args ...string) string {
	t.Helper()
	return p.Run(t, append([]string{
		"env", "CONTAINERS_CONF=" + p.config(),
		"podman", "--root", filepath.Join(p.dir, "root"), "--runroot", "/run/podman", "--tmpdir", "/run/podman", "--storage-driver=vfs",
	}, args...)...)
}
