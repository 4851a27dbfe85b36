package cni

import (
	"context"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/link"
)

// Status reports whether an ADD could succeed now. The error has code 50 where
// it could not, and what else IPAM says. It changes nothing.
func (p *Plugin) Status(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := load(args)
	if err != nil {
		return err
	}
	host, err := link.Host()
	if err != nil {
		return err
	}
	defer host.Close()
	if err := conf.mode.Status(host); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, err.Error(), "")
	}
	return conf.ipam.Status(ctx, args)
}
