package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/fairlead/fairlead/cni/host/namespaces"
	"github.com/fairlead/fairlead/cni/link"
)

// namespace is a network namespace that has a name, and the addresses in it.
type namespace struct {
	path  string
	addrs []netip.Addr
}

func (n namespace) has(addr netip.Addr) bool { return slices.Contains(n.addrs, addr) }

// readNamespaces reads the namespaces that have a name in one of the directories,
// each under the first of its names. A directory need not exist.
func readNamespaces(dirs []string) ([]namespace, error) {
	paths, err := namespacePaths(dirs)
	if err != nil {
		return nil, err
	}
	var found []namespace
	for _, path := range paths {
		if !isNamespace(path) {
			continue
		}
		addrs, err := namespaces.Addrs(path)
		if errors.Is(err, fs.ErrNotExist) { // it went just now
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list addresses in %s: %w", path, err)
		}
		found = append(found, namespace{path, addrs})
	}
	return found, nil
}

// namespacePaths lists the files of directories, and each file once: /var/run is
// /run under another name.
func namespacePaths(dirs []string) ([]string, error) {
	var paths []string
	var seen []os.FileInfo
	for _, dir := range dirs {
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("find network namespaces: %w", err)
		}
		for _, file := range files {
			path := filepath.Join(dir, file.Name())
			info, err := os.Stat(path)
			if err != nil || slices.ContainsFunc(seen, func(other os.FileInfo) bool { return os.SameFile(info, other) }) {
				continue // gone or known
			}
			seen = append(seen, info)
			paths = append(paths, path)
		}
	}
	return paths, nil
}

// isNamespace also takes for one what cannot be opened for another reason than
// that there is none: its pod may live.
func isNamespace(path string) bool {
	ns, err := link.Open(path)
	if err != nil {
		return !errors.Is(err, link.ErrNoNamespace)
	}
	ns.Close()
	return true
}
