// Package sysctl reads and writes values below /proc/sys, those of the network in
// the network namespace of the calling thread. In a container without privileges
// /proc/sys is read-only: there the values are written below HostRoot, where the
// container is to have the host's directory mounted.
package sysctl

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const root = "/proc/sys"

// HostRoot is where a container has what it may write of the host's /proc/sys.
const HostRoot = "/host/proc/sys"

// Read returns a value. The path has slashes, because the names of interfaces may
// hold dots: net/ipv4/conf/eth0.100/arp_notify. The error wraps fs.ErrNotExist if
// the kernel has none of that name, as without IPv6.
func Read(path string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, path))
	return strings.TrimSpace(string(text)), err
}

// Write sets a value, at a path as Read has it.
func Write(path, value string) error {
	return write([]string{root, HostRoot}, path, value)
}

// write writes below the first of the roots that is not read-only.
func write(roots []string, path, value string) error {
	var first error
	for _, root := range roots {
		err := os.WriteFile(filepath.Join(root, path), []byte(value), 0)
		if first == nil {
			first = err
		}
		if err == nil || !errors.Is(first, unix.EROFS) {
			return err
		}
	}
	return first
}
