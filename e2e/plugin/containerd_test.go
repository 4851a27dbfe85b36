package plugin

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestContainerd has Debian's containerd, below ctr, connect a container by
// Fairlead: it answers, and leaves nothing when it ends.
func TestContainerd(t *testing.T) {
	for name, newSite := range map[string]func(*testing.T) *site{"bridge": bridged, "macvlan": onTheWire} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			c := newContainerd(t, s)
			server := netip.MustParseAddrPort("10.9.0.9:80")
			ended := c.place.start(t, "ctr", "run", "--rm", "--cni", "--snapshotter=native", "--cgroup="+c.cgroup,
				"--cap-add=CAP_NET_RAW", "--cap-add=CAP_NET_ADMIN", // the server makes raw sockets where the kernel has no SCTP
				c.image, "web", "/fairlead-lab", "serve", "web", server.String())
			answers(t, s.outside, server)
			c.place.run(t, "ctr", "task", "kill", "--signal=SIGKILL", "web")
			_ = ended() // the status of what was killed
			s.isGone(t)
		})
	}
}

// containerd is the daemon in a node, with a place of its own for all that it
// keeps.
type containerd struct {
	place  *place
	dir    string
	image  string
	cgroup string // of its containers
}

// The places are those that ctr knows of.
const containerdPlace = `
mount -t tmpfs none /var/lib
mount -t tmpfs none /run
mount -t tmpfs none /opt
mount -t tmpfs none /etc
mkdir -p /etc/cni/net.d /opt/cni /run/netns
ln -s %[1]s /opt/cni/bin
cp %[2]s/fairlead.conflist /etc/cni/net.d
`

func newContainerd(t *testing.T, s *site) *containerd {
	t.Helper()
	for _, program := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("Debian's package containerd is not installed: there is no %s", program)
		}
	}
	c := &containerd{dir: t.TempDir(), image: "localhost/server:1", cgroup: fmt.Sprintf("fairlead-test-%d", os.Getpid())}
	files := map[string][]byte{
		"fairlead.conflist": marshal(t, object{"cniVersion": "1.0.0", "name": "fairlead", "plugins": []object{s.plugin}}),
		"image.tar":         newImage(t, c.image),
		"config.toml":       []byte("version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(c.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.sweep()
	t.Cleanup(c.sweep) // after the place, and with it the container, is gone
	c.place = newPlace(t, s.node.ns, fmt.Sprintf(containerdPlace, programs.Dir(t), c.dir))
	c.place.start(t, "containerd", "--log-level=warn", "--config="+filepath.Join(c.dir, "config.toml"))
	c.await(t)
	c.place.run(t, "ctr", "image", "import", filepath.Join(c.dir, "image.tar"))
	return c
}

// await waits until the daemon answers.
func (c *containerd) await(t *testing.T) {
	t.Helper()
	command := c.place.command("ctr", "version")
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err = c.place.node.Output(t.Context(), command[0], command[1:]...); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// sweep removes the control groups that are left of containers that were killed
// with all that was around them, also by tests before. The kernel keeps those with
// processes.
func (c *containerd) sweep() {
	for _, depth := range []string{"", "*/"} {
		left, _ := filepath.Glob("/sys/fs/cgroup/" + depth + "fairlead-test-*")
		for _, dir := range left {
			_ = os.Remove(dir)
		}
	}
}
