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
// code 50 where it could not: nothing is left of a range set, or the store cannot
// be read. It has code 51 where besides a pod suffers that runs already, because
// it holds an address that the configuration has come to reserve. A configuration
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
	err = store.View(ctx, func(tx ipam.Tx) error { return ipam.Ready(tx, boot, add.sets, p.Now()) })
	if errors.Is(err, fs.ErrNotExist) { // the first Add makes it
		return nil
	}
	return unavailable(err)
}

// unavailable gives what STATUS found its code.
func unavailable(err error) error {
	if err == nil {
		return nil
	}
	code := types.ErrPluginNotAvailable
	if reserved := (*ipam.ReservedError)(nil); errors.As(err, &reserved) {
		code = types.ErrLimitedConnectivity
	}
	return types.NewError(code, err.Error(), "")
}
