package ebpf

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/ebpf/pins"
)

// clsactTest is a node with a link pod, and where its data path lives.
type clsactTest struct {
	*testing.T
	node   *netns.NS
	config Config
}

// run publishes a data path, as a process of its own would.
func (c *clsactTest) run(steps func(d *DataPath) error) {
	c.Helper()
	if err := c.node.Do(func() error {
		d, err := Load(c.config)
		if err != nil {
			return err
		}
		defer func() { _ = d.Close() }()
		if err := d.Publish(); err != nil {
			return err
		}
		return steps(d)
	}); err != nil {
		c.Fatal(err)
	}
}

// want looks how many filters are on the link pod, and how many links are pinned.
func (c *clsactTest) want(filters, links int) {
	c.Helper()
	got := 0
	if err := c.node.Do(func() error {
		kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer kernel.Close()
		pod, err := kernel.LinkByName("pod")
		if err != nil {
			return err
		}
		for _, side := range sides {
			if hasFilter(kernel, pod.Attrs().Index, side) {
				got++
			}
		}
		return nil
	}); err != nil {
		c.Fatal(err)
	}
	pinned, _ := os.ReadDir(pins.Links(c.config.Root)) // there may be none
	if got != filters || len(pinned) != links {
		c.Errorf("%d filters, %d pins; want %d and %d", got, len(pinned), filters, links)
	}
}

func (c *clsactTest) intact(d *DataPath, want bool) {
	c.Helper()
	if ok, err := d.Intact(); ok != want || err != nil {
		c.Errorf("intact: %v, %v; want %v", ok, err, want)
	}
}

// TestClsact has programs attached as filters, as before kernel 6.6: they come back
// when others remove them, give way to tcx and take its place, and go.
func TestClsact(t *testing.T) {
	c := clsactTest{t, netns.NewT(t), Config{Root: filepath.Join(t.TempDir(), "bpf"), CgroupRoot: cgroup.NewT(t).Path, Clsact: true}}
	c.node.RunT(t, "sh", "-ec", "ip link set lo up; ip link add pod type veth peer name far; ip link set pod up")
	c.run(func(d *DataPath) error {
		c.intact(d, true)
		c.want(2, 0)
		if out, err := exec.Command("tc", "qdisc", "del", "dev", "pod", "clsact").CombinedOutput(); err != nil {
			return fmt.Errorf("tc: %w: %s", err, out)
		}
		c.intact(d, false)
		return d.Publish()
	})
	c.want(2, 0)
	c.config.Clsact = false
	c.run(func(d *DataPath) error {
		if d.links.clsact { // the kernel has no tcx
			c.want(2, 0)
		} else {
			c.want(0, 5) // in and out of pod and far, out of lo
		}
		return nil
	})
	c.config.Clsact = true
	c.run(func(*DataPath) error { return nil })
	c.want(2, 0)
	if err := c.node.Do(func() error { return Remove(c.config.Root) }); err != nil {
		t.Fatal(err)
	}
	c.want(0, 0)
}
