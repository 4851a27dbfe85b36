package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/ipam"
)

// Status says whether Add could give a pod its addresses now. The error has
// code 50 where it could not: nothing is left of a range set, the node has no block
// of a pool, or the store cannot be read. It has code 51 where a pod suffers that
// runs already: because besides it holds an address that the configuration has
// come to reserve, or because its block of a pool went to another node. A configuration
// that Add would refuse is refused the same way.
func (p *Plugin) Status(ctx context.Context, args *skel.CmdArgs) error {
	store, _, err := openStore(args.StdinData)
	if err != nil {
		return err
	}
	add, err := decodeAddition(args)
	if err != nil {
		return err
	}
	boot, err := p.BootID()
	if err != nil {
		return unavailable(fmt.Errorf("read boot id: %w", err))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = store.View(ctx, func(tx ipam.Tx) error { return add.ready(tx, boot, p.Now()) })
	if errors.Is(err, fs.ErrNotExist) { // the first Add makes it, or the daemon that leases blocks
		err = nil
		if len(add.pools) > 0 {
			err = &ipam.NoBlockError{Pool: add.pools[0]}
		}
	}
	return unavailable(err)
}

// unavailable gives what STATUS found its code.
func unavailable(err error) error {
	if known := (*types.Error)(nil); err == nil || errors.As(err, &known) {
		return err
	}
	code := types.ErrPluginNotAvailable
	var (
		reserved *ipam.ReservedError
		lost     *ipam.LostError
	)
	if errors.As(err, &reserved) || errors.As(err, &lost) {
		code = types.ErrLimitedConnectivity
	}
	return types.NewError(code, err.Error(), "")
}
