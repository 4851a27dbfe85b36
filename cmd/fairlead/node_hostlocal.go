package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/takeover"
)

// hostLocalGuard keeps pods from being made on a node as long as pods that the reference
// plugins made there have addresses of the same ranges, which Fairlead has not taken over.
type hostLocalGuard struct {
	dir    string // host-local's directory of networks; "": it is not looked for
	stores *nodeStores
	passed bool // there were none: from now on Fairlead alone makes pods
}

// check says what is to be done about addresses of the ranges before pods may be made,
// "" if nothing. Those of an earlier boot, which host-local keeps, are of no pod.
func (g *hostLocalGuard) check(ctx context.Context, ranges []netip.Prefix) (todo string, err error) {
	if g.passed || g.dir == "" || len(ranges) == 0 {
		return "", nil
	}
	networks, err := os.ReadDir(g.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look for addresses of host-local: %w", err)
	}
	since, err := booted()
	if err != nil {
		return "", err
	}
	for _, n := range networks {
		if !n.IsDir() {
			continue
		}
		leases, err := g.untaken(ctx, n.Name(), ranges, since)
		if err != nil {
			return "", err
		}
		if len(leases) > 0 {
			return fmt.Sprintf("no pods are made here: host-local has addresses of this node's ranges for %s in %s, such as %s for %s: take them over by 'fairlead ipam import-host-local --from-network %s', or remove the directory if there are no such pods",
				counted(len(leases), "pod"), filepath.Join(g.dir, n.Name()), leases[0].Addrs[0], leases[0].Owner, n.Name()), nil
		}
	}
	g.passed = true
	return "", nil
}

// booted is when the kernel started.
func booted() (time.Time, error) {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}, fmt.Errorf("read the time since the boot: %w", err)
	}
	return time.Now().Add(-time.Duration(up.Nano())), nil
}

// untaken are what host-local has given of ranges since a time and Fairlead never had.
func (g *hostLocalGuard) untaken(ctx context.Context, network string, ranges []netip.Prefix, since time.Time) ([]ipam.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	dir, err := takeover.Open(ctx, g.dir, network)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	rows, err := dir.Read()
	if err != nil {
		return nil, err
	}
	inRange := func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	leases := slices.DeleteFunc(rows.Leases, func(l ipam.Lease) bool {
		return l.Since.Before(since) || !slices.ContainsFunc(l.Addrs, inRange)
	})
	if len(leases) == 0 {
		return nil, nil
	}
	return g.stores.unimported(ctx, leases)
}

// unimported are those of another allocator's leases that no network of the node has
// imported.
func (s *nodeStores) unimported(ctx context.Context, leases []ipam.Lease) ([]ipam.Lease, error) {
	networks, err := s.Networks()
	if err != nil {
		return nil, err
	}
	for _, network := range networks {
		var failed error
		err := s.Update(ctx, network, func(tx ipam.Tx, _ string) error {
			leases = slices.DeleteFunc(leases, func(l ipam.Lease) bool {
				imported, err := ipam.Imported(tx, l.Owner)
				failed = errors.Join(failed, err)
				return imported
			})
			return failed
		})
		if err != nil {
			return nil, err
		}
	}
	return leases, nil
}
