package vm

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Root is the root file system of a machine, a directory that becomes its
// initramfs.
type Root struct{ dir string }

// commands are the programs of this machine that tests run. For the rest there is
// busybox.
var commands = []string{
	"dash", "ip", "tc", "bridge", "nft", "conntrack", "sysctl", "kmod", "unshare", "nsenter",
	"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
	"iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore",
	"sctp_test",
	"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore",
}

// NewRoot makes in an empty directory what every test needs of a machine with that
// kernel.
func NewRoot(ctx context.Context, dir string, k Kernel) (Root, error) {
	r := Root{dir}
	for _, d := range []string{"dev", "etc", "proc", "root", "run", "sys", "tmp", "bin", "usr/bin", "usr/sbin", "sbin", "var/lib", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return r, err
		}
	}
	if err := r.AddFile("/bin/busybox", "/bin/busybox"); err != nil {
		return r, err
	}
	for _, name := range commands {
		if err := r.addCommand(ctx, name); err != nil {
			return r, err
		}
	}
	extensions, err := filepath.Glob("/usr/lib/*/xtables")
	if err != nil || len(extensions) == 0 {
		return r, fmt.Errorf("find the extensions of iptables in /usr/lib/*/xtables: %w", err)
	}
	for _, from := range append(extensions, "/etc/passwd", "/etc/group", "/etc/protocols", "/etc/iproute2") {
		if err := r.addTree(from, from); err != nil {
			return r, err
		}
	}
	// busybox' own shell would prefer its own ip to the real one.
	for link, to := range map[string]string{"sbin/modprobe": "/usr/bin/kmod", "sbin/insmod": "/usr/bin/kmod", "bin/sh": "/usr/sbin/dash"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			return r, err
		}
	}
	return r, r.addModules(ctx, k)
}

// AddFile copies a file of this machine.
func (r Root) AddFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy to the machine: %w", err)
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	to = filepath.Join(r.dir, to)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.WriteFile(to, text, info.Mode().Perm())
}

// addTree copies a file or a directory with all that is in it, if it is there.
func (r Root) addTree(from, to string) error {
	if _, err := os.Stat(from); err != nil {
		return nil //nolint:nilerr // not every machine has it
	}
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return r.AddFile(path, filepath.Join(to, rest))
	})
}

var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// addCommand copies a program and the libraries that it is linked with.
func (r Root) addCommand(ctx context.Context, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("copy %s to the machine: %w", name, err)
	}
	to := filepath.Join("/usr/sbin", name)
	if name == "kmod" {
		to = "/usr/bin/kmod"
	}
	if err := r.AddFile(path, to); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return fmt.Errorf("find the libraries of %s: %w", path, err)
	}
	for _, m := range library.FindAllSubmatch(out, -1) {
		if err := r.AddFile(string(m[1]), string(m[1])); err != nil {
			return err
		}
	}
	return nil
}

// families are the directories of modules that a node's network can ask for.
var families = []string{"net", "drivers/net", "crypto", "lib", "arch", "fs/overlayfs"}

func (r Root) addModules(ctx context.Context, k Kernel) error {
	modules, err := k.modules()
	if err != nil {
		return err
	}
	release := filepath.Base(modules)
	to := filepath.Join("lib", "modules", release)
	for _, family := range families {
		if err := r.addTree(filepath.Join(modules, "kernel", family), filepath.Join(to, "kernel", family)); err != nil {
			return err
		}
	}
	for _, list := range []string{"modules.builtin", "modules.builtin.modinfo", "modules.order"} {
		if err := r.AddFile(filepath.Join(modules, list), filepath.Join(to, list)); err != nil {
			return err
		}
	}
	// The emulated machine would take long to unpack what this one does at once.
	unpack := fmt.Sprintf("find %s -name '*.ko.xz' -exec xz -d {} +; depmod -b %s %s", filepath.Join(r.dir, to), r.dir, release)
	if out, err := exec.CommandContext(ctx, "sh", "-ec", unpack).CombinedOutput(); err != nil {
		return fmt.Errorf("prepare the modules of %s: %w: %s", release, err, out)
	}
	return nil
}

// AddScript adds the first program of the machine, a shell script that is run as
// root with everything mounted. When it ends the machine does.
func (r Root) AddScript(script string) error {
	const before = `#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null # what is there stays
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
`
	return os.WriteFile(filepath.Join(r.dir, "init"), []byte(before+script+"\npoweroff -f\n"), 0o755)
}

// initramfs writes the file system as the kernel takes it, and returns its path.
func (r Root) initramfs(ctx context.Context) (string, error) {
	path := strings.TrimSuffix(r.dir, "/") + ".cpio"
	file, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", "-ec", "find . -print0 | cpio --null --create --format=newc --quiet")
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.dir, file, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("write initramfs: %w: %s", err, &said)
	}
	return path, file.Close()
}
