// Package vm boots Debian's kernels in an emulated machine and runs tests inside:
// what a node's kernel is, and what this machine's is not.
//
//	Debian ──FindKernel──▶ Kernel ──┐
//	programs, tests ────▶ Root ─────┴─Boot──▶ the console, line by line
//
// The machine is qemu's, without KVM, which is rarely there where tests run: it
// boots in some seconds and computes about ten times as slowly. It has no disk and
// no network; all that it has is in its initramfs.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Package string // as Debian names it
	dir     string
}

// image is the kernel itself.
func (k Kernel) image() (string, error) { return only(filepath.Join(k.dir, "boot", "vmlinuz-*")) }

// modules is the directory of its modules, which is named after its release.
func (k Kernel) modules() (string, error) { return only(filepath.Join(k.dir, "lib", "modules", "*")) }

func only(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("find %s: there are %d", pattern, len(found))
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// FindKernel returns Debian's newest kernel for cloud machines of a version, such
// as 6.1. It is downloaded and unpacked, not installed, and kept in the user's
// cache.
func FindKernel(ctx context.Context, version string) (Kernel, error) {
	name, err := newestPackage(ctx, version)
	if err != nil {
		return Kernel{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return Kernel{}, err
	}
	k := Kernel{Package: name, dir: filepath.Join(cache, "fairlead", name)}
	_, err = os.Stat(k.dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = unpack(ctx, name, k.dir)
	}
	return k, err
}

// newestPackage asks apt, and has it ask Debian if it knows of none.
func newestPackage(ctx context.Context, version string) (string, error) {
	for _, update := range []bool{false, true} {
		if update {
			if out, err := exec.CommandContext(ctx, "apt-get", "update", "-q").CombinedOutput(); err != nil {
				return "", fmt.Errorf("ask Debian for its packages: %w: %s", err, out)
			}
		}
		out, err := exec.CommandContext(ctx, "apt-cache", "pkgnames", "linux-image-"+version+".").Output()
		if err != nil {
			return "", fmt.Errorf("list Debian's kernels: %w", err)
		}
		if name := newest(strings.Fields(string(out))); name != "" {
			return name, nil
		}
	}
	return "", fmt.Errorf("find kernel %q: this Debian has no package linux-image-%s.…-cloud-amd64", version, version)
}

var cloudImage = regexp.MustCompile(`^linux-image-([0-9.]+)(?:-([0-9]+))?(?:\+[a-z0-9]+)?-cloud-amd64$`)

// newest is the name with the highest version, "" if none names a kernel.
func newest(names []string) string {
	best, highest := "", []int(nil)
	for _, name := range names {
		m := cloudImage.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		var numbers []int
		for number := range strings.SplitSeq(m[1]+"."+m[2], ".") {
			n, _ := strconv.Atoi(number) // "" is 0
			numbers = append(numbers, n)
		}
		if slices.Compare(numbers, highest) > 0 {
			best, highest = name, numbers
		}
	}
	return best
}

// unpack makes dir, complete or not at all.
func unpack(ctx context.Context, name, dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	unfinished, err := os.MkdirTemp(filepath.Dir(dir), "unfinished-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(unfinished) }()
	// apt's own user, as which it would download, may not write here.
	download := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name)
	download.Dir = unfinished
	if out, err := download.CombinedOutput(); err != nil {
		return fmt.Errorf("download %s: %w: %s", name, err, out)
	}
	archive, err := only(filepath.Join(unfinished, "*.deb"))
	if err != nil {
		return err
	}
	tree := filepath.Join(unfinished, "tree")
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", archive, tree).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", name, err, out)
	}
	if err := os.Rename(tree, dir); err != nil && !errors.Is(err, fs.ErrExist) { // others were faster
		return err
	}
	return nil
}
