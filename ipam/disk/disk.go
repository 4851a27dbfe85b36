// Package disk keeps what package ipam knows in a file: one bbolt database per
// network, DATADIR/NETWORK.db, for any number of short-lived processes.
//
// A transaction is one opening of the file under a lock. It is synced before
// Update returns, and a process that is killed at any instant leaves the
// transaction done or not begun. The file is complete from the moment it has its
// name. A file that this package cannot read is refused with a sentence on what
// to do, and never made anew: pods may be running on the addresses in it.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/fairlead/fairlead/ipam"
)

// DefaultDir is where the stores of a node are.
const DefaultDir = "/var/lib/cni/fairlead"

const suffix = ".db"

// Networks returns the names of the networks that have a store in dataDir, sorted.
// There is none in a directory that does not exist.
func Networks(dataDir string) ([]string, error) {
	files, err := os.ReadDir(dataDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find stores: %w", err)
	}
	var names []string
	for _, file := range files {
		name, ours := strings.CutSuffix(file.Name(), suffix)
		if ours && utils.ValidateNetworkName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// BootID names the running boot of the kernel, to which rows belong.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// Store is the file of one network. Nothing of it is open between calls.
type Store struct {
	path string
}

// New names the store of a network; the file need not be there. The network's
// name must be one that CNI allows, for it becomes part of a path.
func New(dataDir, network string) (*Store, error) {
	if err := utils.ValidateNetworkName(network); err != nil {
		return nil, fmt.Errorf("network name %q is not allowed: it must be letters, digits and _.-, of which the first is a letter or digit", network)
	}
	return &Store{path: filepath.Join(dataDir, network+suffix)}, nil
}

// Exists says whether a transaction ever made the file.
func (s *Store) Exists() (bool, error) {
	_, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find store: %w", err)
	}
	return true, nil
}

// Update runs f in a transaction that is on disk when Update returns nil. When f
// returns an error nothing has changed, and Update returns that error. It makes
// the file, and the directories above it, where they are missing.
//
// It waits for other processes' transactions; the error wraps that of ctx when
// it is done first.
func (s *Store) Update(ctx context.Context, f func(ipam.Tx) error) error {
	return s.withFile(ctx, os.O_RDWR, func(file *file) error { return file.update(f) })
}

// View runs f, which must not write, on the file as the last transaction left
// it. The error wraps fs.ErrNotExist when there is none. For the rest it is as
// Update.
func (s *Store) View(ctx context.Context, f func(ipam.Tx) error) error {
	return s.withFile(ctx, os.O_RDONLY, func(file *file) error { return file.view(f) })
}

// Check reads all of the file and returns a sentence for each page that is not as
// it should be. For the rest it is as View.
func (s *Store) Check(ctx context.Context) (found []string, err error) {
	err = s.withFile(ctx, os.O_RDONLY, func(file *file) error {
		found, err = file.check()
		return err
	})
	return found, err
}

func (s *Store) withFile(ctx context.Context, mode int, f func(*file) error) error {
	file, err := open(ctx, s.path, mode)
	if errors.Is(err, fs.ErrNotExist) && mode == os.O_RDWR {
		if err := create(ctx, s.path); err != nil {
			return err
		}
		file, err = open(ctx, s.path, mode)
	}
	if err != nil {
		return err
	}
	defer file.close()
	return f(file)
}
