package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// Stale returns what GC is to give back, for whoever has to take it from pods
// first: the leases of this network whose owners the configuration does not list
// as valid. Those that cannot be read are in the error, beside the others.
func (p *Plugin) Stale(ctx context.Context, args *skel.CmdArgs) ([]ipam.Lease, error) {
	store, _, err := openStore(args.StdinData)
	if err != nil {
		return nil, err
	}
	valid, err := validOwners(args.StdinData)
	if err != nil {
		return nil, err
	}
	var leases []ipam.Lease
	err = p.view(ctx, store, func(tx ipam.Tx, boot string) (err error) {
		leases, err = ipam.Leases(tx, boot)
		return err
	})
	return slices.DeleteFunc(leases, func(l ipam.Lease) bool { return valid[l.Owner] }), coded(err)
}

// Ranges returns the usage of the ranges of a network, by its name.
func (p *Plugin) Ranges(ctx context.Context, stdin []byte) (network string, ranges []ipam.Usage, err error) {
	store, conf, err := openStore(stdin)
	if err != nil {
		return "", nil, err
	}
	err = p.view(ctx, store, func(tx ipam.Tx, boot string) (err error) {
		ranges, err = ipam.Ranges(tx, boot, p.Now())
		return err
	})
	return conf.Name, ranges, coded(err)
}

// view runs f on what the store has, unless nothing was ever given.
func (p *Plugin) view(ctx context.Context, store *disk.Store, f func(tx ipam.Tx, boot string) error) error {
	boot, err := p.BootID()
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = store.View(ctx, func(tx ipam.Tx) error { return f(tx, boot) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
