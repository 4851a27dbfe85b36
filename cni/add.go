package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/step"
)

// Add attaches a pod and prints the result, added to that of the plugins before
// it in the chain (which the reference plugin drops). When it fails there is
// nothing left of it: no interface, no address held.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := load(args)
	if err != nil {
		return err
	}
	previous, err := conf.previous()
	if err != nil {
		return err
	}
	a, err := open(args, conf)
	if err != nil {
		return err
	}
	defer a.close()
	if err := a.refuseSecond(); err != nil {
		return err
	}

	_, err = step.Run(
		func() (step.Undo, error) { return a.allocate(ctx) },
		a.connection.Add,
		a.configure,
		func() (step.Undo, error) { return nil, a.connection.Settle() },
		a.setLoopbackUp,
		func() (step.Undo, error) { return nil, p.print(after(previous, a.Result), args.StdinData) },
	)
	return err
}

// refuseSecond is before everything else: undoing this ADD would take from the
// pod what it has by an earlier one.
func (a *attachment) refuseSecond() error {
	_, err := a.Pod.Device(a.IfName)
	if errors.Is(err, link.ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	return types.NewError(types.ErrInvalidEnvironmentVariables,
		fmt.Sprintf("CNI_IFNAME: the pod has an interface %s already", a.IfName), "")
}

// allocate gets addresses, routes and DNS settings from IPAM. DNS settings of
// the runtime take the place of those of the network's configuration, and these
// of IPAM's.
func (a *attachment) allocate(ctx context.Context) (step.Undo, error) {
	result, err := a.conf.ipam.Add(ctx, a.args)
	if err != nil {
		return nil, err
	}
	if dns := a.conf.dns(); !dns.IsEmpty() {
		result.DNS = dns
	}
	a.Result = result
	return func() error { return a.conf.ipam.Del(ctx, a.args) }, nil
}
