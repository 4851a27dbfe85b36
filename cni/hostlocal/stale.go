package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/fairlead/fairlead/ipam"
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
	boot, err := p.BootID()
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var leases []ipam.Lease
	err = store.View(ctx, func(tx ipam.Tx) (err error) {
		leases, err = ipam.Leases(tx, boot)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) { // nothing was ever given
		return nil, nil
	}
	return slices.DeleteFunc(leases, func(l ipam.Lease) bool { return valid[l.Owner] }), coded(err)
}
