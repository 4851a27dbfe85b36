package place

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Containerd is the daemon in a node.
type Containerd struct {
	*Place
	Cgroup string // of its containers
}

// The places are those that ctr knows of.
const containerdPlace = `
mount -t tmpfs none /var/lib
mount -t tmpfs none /run
mount -t tmpfs none /opt
mount -t tmpfs none /etc
mkdir /run/netns
`

// NewContainerd starts Debian's containerd, after a script in shell has put things
// into /etc, /opt, /run and /var/lib, which are empty.
func NewContainerd(t *testing.T, node *netns.NS, prepare string) *Containerd {
	t.Helper()
	for _, program := range []string{"containerd", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("Debian's package containerd is not installed: there is no %s", program)
		}
	}
	config := filepath.Join(t.TempDir(), "config.toml")
	text := "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Containerd{Cgroup: fmt.Sprintf("fairlead-test-%d", os.Getpid())}
	c.sweep()
	t.Cleanup(c.sweep) // after the place, and with it the container, is gone
	c.Place = New(t, node, containerdPlace+prepare)
	c.Start(t, "containerd", "--log-level=warn", "--config="+config)
	c.await(t)
	return c
}

// Import imports the images of an archive.
func (c *Containerd) Import(t *testing.T, archive string) {
	t.Helper()
	c.Run(t, "ctr", "image", "import", "--snapshotter=native", archive)
}

// await waits until the daemon answers.
func (c *Containerd) await(t *testing.T) {
	t.Helper()
	command := c.command("ctr", "version")
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if _, err = c.node.Output(t.Context(), command[0], command[1:]...); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// sweep removes the control groups that are left of containers that were killed
// with all that was around them, also by tests before. The kernel keeps those with
// processes.
func (c *Containerd) sweep() {
	for _, depth := range []string{"", "*/"} {
		left, _ := filepath.Glob("/sys/fs/cgroup/" + depth + "fairlead-test-*")
		for _, dir := range left {
			_ = os.Remove(dir)
		}
	}
}
