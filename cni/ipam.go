package cni

import (
	"context"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/hostlocal"
)

// inProcess is the IPAM type that is served without another program.
const inProcess = "fairlead-ipam"

// ipam is where a pod's addresses come from: this process or another program.
type ipam interface {
	// Add gives the attachment its addresses, or nothing when it fails.
	Add(context.Context, *skel.CmdArgs) (*types100.Result, error)
	// Del succeeds if there is nothing to give back.
	Del(context.Context, *skel.CmdArgs) error
	Check(context.Context, *skel.CmdArgs) error
	// Status reports why the next Add would fail.
	Status(context.Context, *skel.CmdArgs) error
	// GC gives back what no valid attachment holds.
	GC(context.Context, *skel.CmdArgs) error
}

// newIPAM returns the plugin of that type, or none for type "".
func newIPAM(plugin, cniPath string) (ipam, error) {
	switch plugin {
	case "":
		return none{}, nil
	case inProcess:
		return hostlocal.New(), nil
	default:
		return newDelegate(plugin, cniPath)
	}
}

// none is for pods that get an interface and no addresses.
type none struct{}

func (none) Add(context.Context, *skel.CmdArgs) (*types100.Result, error) {
	return &types100.Result{CNIVersion: types100.ImplementedSpecVersion}, nil
}
func (none) Del(context.Context, *skel.CmdArgs) error    { return nil }
func (none) Check(context.Context, *skel.CmdArgs) error  { return nil }
func (none) Status(context.Context, *skel.CmdArgs) error { return nil }
func (none) GC(context.Context, *skel.CmdArgs) error     { return nil }
