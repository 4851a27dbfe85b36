// Package hostlocal is the IPAM plugin: it speaks host-local's configuration on
// one side and the allocator of package ipam on the other. Package cni calls it
// in process, the program fairlead-ipam serves the same verbs to plugins that
// delegate to it by exec.
//
// It touches no network: it reads its configuration from the arguments, keeps
// its rows in the network's store (package ipam/disk), and returns what CNI
// calls a result. Errors of the caller's making are *types.Error with the
// specification's code; nothing is logged.
package hostlocal

import (
	"context"
	"errors"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Plugin is the IPAM plugin with what it takes from the machine.
type Plugin struct {
	// BootID names the running boot of the kernel: an address held since an
	// earlier boot is free again, because no pod survives a reboot.
	BootID func() (string, error)
	// Now is the clock that dates rows.
	Now func() time.Time
}

// New returns the plugin of this machine.
func New() *Plugin { return &Plugin{} }

// Add gives the attachment (args.ContainerID, args.IfName) one address of each
// range set and returns them with their gateways, the configured routes and the
// DNS settings of resolvConf. The result has no interfaces, as the
// specification asks of IPAM plugins, and is of version types100.ImplementedSpecVersion:
// the caller converts it when it prints.
//
// The rows are on disk when Add returns. A caller that fails later gives the
// addresses back by Del.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) (*types100.Result, error) {
	return nil, errors.ErrUnsupported
}

// Del gives back whatever the attachment holds. It succeeds when there is
// nothing to give back, and needs no more of the configuration than the
// network's name and ipam.dataDir: a configuration that was broken since Add
// does not keep a pod from going.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	return errors.ErrUnsupported
}

// Check verifies that the attachment still holds addresses and, where the
// configuration carries a prevResult, that it lists all of them.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	return errors.ErrUnsupported
}
