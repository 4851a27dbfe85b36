package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
	"github.com/fairlead/fairlead/ipam/flock"
)

// nodeStores are the stores of addresses of this node. It implements pool.Stores.
type nodeStores struct {
	dataDir string
	bootID  func() (string, error)
}

// Networks implements pool.Stores.
func (s *nodeStores) Networks() ([]string, error) { return disk.Networks(s.dataDir) }

// Update implements pool.Stores.
func (s *nodeStores) Update(ctx context.Context, network string, f func(tx ipam.Tx, boot string) error) error {
	store, err := disk.New(s.dataDir, network)
	if err != nil {
		return err
	}
	boot, err := s.bootID()
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	return store.Update(ctx, func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, boot); err != nil {
			return err
		}
		return f(tx, boot)
	})
}

// anyPool says whether a network of the node has to do with a pool.
func (s *nodeStores) anyPool(ctx context.Context) (found bool, err error) {
	networks, err := s.Networks()
	if err != nil {
		return false, err
	}
	for _, network := range networks {
		err := s.Update(ctx, network, func(tx ipam.Tx, boot string) error {
			wanted, err := ipam.Wanted(tx)
			if err != nil {
				return err
			}
			grants, err := ipam.Grants(tx, boot)
			found = found || len(wanted)+len(grants) > 0
			return err
		})
		if err != nil {
			return false, err
		}
	}
	return found, nil
}

// lock makes this process the one that leases blocks for the node's stores, as
// soon as no other does.
func (s *nodeStores) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("lock pools: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.dataDir, "pools.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock pools: %w", err)
	}
	if err := flock.Lock(ctx, f, unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock pools %s: %w", f.Name(), err)
	}
	return func() { _ = f.Close() }, nil
}

// watch tells of transactions of pods that come and go.
func (s *nodeStores) watch() (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch stores: %w", err)
	}
	if err := w.Add(s.dataDir); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("watch stores in %s: %w", s.dataDir, err)
	}
	return w, nil
}

// poolsOf are the pools of a network configuration list.
func poolsOf(text []byte) (network string, pools []string, err error) {
	var list struct {
		Name    string `json:"name"`
		Plugins []struct {
			IPAM struct {
				Pools []string `json:"pools"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return "", nil, fmt.Errorf("read network configuration: %w", err)
	}
	for _, plugin := range list.Plugins {
		pools = append(pools, plugin.IPAM.Pools...)
	}
	return list.Name, pools, nil
}
