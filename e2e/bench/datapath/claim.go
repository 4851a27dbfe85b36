package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
)

// root is the directory in which every run has its own. Namespaces and processes
// of a run end with it, also by SIGKILL: they have no name, and die with their
// parent. What is named is found by the name of this directory: a cgroup, and a
// folder of pinned BPF objects.
const root = "/run/fairlead-bench"

// claim is what of a run outlives its process.
type claim struct {
	dir    string // root/ID
	cgroup string // "": there is no cgroup v2
	bpf    string
}

// claimFor names a run after its process for good.
func claimFor(p lab.Process) (claim, error) {
	id := fmt.Sprintf("%d-%d", p.PID, p.Start)
	c := claim{dir: filepath.Join(root, id), bpf: filepath.Join("/sys/fs/bpf", "fairlead-bench-"+id)}
	mount, err := cgroupMount()
	if err != nil {
		return claim{}, err
	}
	if mount != "" {
		c.cgroup = filepath.Join(mount, "fairlead-bench-"+id)
	}
	return c, nil
}

// newClaim makes the directories of this process, but for the folder of BPF
// objects, which is the proxy's.
func newClaim() (claim, error) {
	c, err := claimFor(lab.ThisProcess())
	if err != nil {
		return claim{}, err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return claim{}, fmt.Errorf("make directory of the run: %w", err)
	}
	if c.cgroup == "" {
		return c, nil
	}
	if err := os.Mkdir(c.cgroup, 0o755); err != nil {
		return claim{}, errors.Join(fmt.Errorf("make cgroup: %w", err), c.remove())
	}
	return c, nil
}

// remove takes everything away. It is no error if it is gone.
func (c claim) remove() error {
	errs := []error{os.RemoveAll(c.bpf), removeCgroups(c.cgroup)}
	// Last: by it the rest is found.
	if errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(c.dir))
	}
	return errors.Join(errs...)
}

// killGrace is how long the kernel gets to carry out a SIGKILL.
const killGrace = 10 * time.Second

// removeCgroups removes a cgroup and those below it, whose processes have ended.
// Their files go with them.
func removeCgroups(dir string) error {
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	// A process that was killed is in its cgroup until it is gone.
	err = unix.Rmdir(dir)
	for deadline := time.Now().Add(killGrace); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
		err = unix.Rmdir(dir)
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// Sweep removes what runs that were killed have left.
func Sweep() error {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		var owner lab.Process
		if _, err := fmt.Sscanf(e.Name(), "%d-%d", &owner.PID, &owner.Start); err != nil {
			continue
		}
		owner.Boot = lab.ThisProcess().Boot // root is gone with the boot
		if owner.Running() {
			continue
		}
		c, err := claimFor(owner)
		if err == nil {
			err = c.remove()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// cgroupMount is where cgroup v2 is mounted, "" if it is not.
func cgroupMount() (string, error) {
	mounts, err := os.Open("/proc/mounts")
	if err != nil {
		return "", fmt.Errorf("find cgroup v2: %w", err)
	}
	defer func() { _ = mounts.Close() }()
	lines := bufio.NewScanner(mounts)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", lines.Err()
}
