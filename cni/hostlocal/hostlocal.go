// Package hostlocal is the IPAM plugin: it speaks host-local's configuration on
// one side and the allocator of package ipam on the other. Package cni calls it
// in process, the program fairlead-ipam serves the same verbs to plugins that
// delegate to it by exec.
//
// It touches no network: it reads its configuration from the arguments, keeps
// its rows in the network's store (package ipam/disk), and returns what CNI
// calls a result. Its errors are *types.Error with a code (see errors.go);
// nothing is logged.
package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// patience is how long a verb waits for the transactions of other pods. Each
// takes about a millisecond; whoever waits this long waits for a stopped process.
const patience = 60 * time.Second

// Plugin is the IPAM plugin with what it takes from the machine.
type Plugin struct {
	// BootID names the running boot of the kernel: an address held since an
	// earlier boot is free again, because no pod survives a reboot.
	BootID func() (string, error)
	// Now is the clock that dates rows.
	Now func() time.Time
}

// New returns the plugin of this machine.
func New() *Plugin { return &Plugin{BootID: disk.BootID, Now: time.Now} }

// Add gives the attachment (args.ContainerID, args.IfName) one address of each
// range set and returns them with their gateways, the configured routes and the
// DNS settings of resolvConf. The result has no interfaces, as the specification
// asks of IPAM plugins, and is of version types100.ImplementedSpecVersion: the
// caller converts it when it prints.
//
// The rows are on disk when Add returns, and there are none when it returns an
// error. A caller that fails later gives the addresses back by Del.
func (p *Plugin) Add(ctx context.Context, args *skel.CmdArgs) (*types100.Result, error) {
	store, _, err := openStore(args.StdinData)
	if err != nil {
		return nil, err
	}
	add, err := decodeAddition(args)
	if err != nil {
		return nil, err
	}
	result := &types100.Result{CNIVersion: types100.ImplementedSpecVersion, Routes: add.routes}
	if result.DNS, err = readResolvConf(add.resolvConf); err != nil {
		return nil, invalid("ipam.resolvConf", "%v", err)
	}
	err = p.update(ctx, store, func(tx ipam.Tx, boot string) error {
		sets, routes, err := add.withPools(tx, boot, p.Now())
		if err != nil {
			return err
		}
		result.Routes = append(result.Routes, routes...)
		given, err := ipam.Allocate(tx, sets, ipam.Request{
			Owner: owner(args), Netns: args.Netns, Pod: add.pod, Wanted: add.wanted,
			Cooldown: add.cooldown, Sticky: add.sticky, Boot: boot, Now: p.Now(),
		})
		for _, address := range given {
			result.IPs = append(result.IPs, ipConfig(address))
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(coded(err), p.demand(ctx, store, add.pools, err))
	}
	return result, nil
}

// Del gives back whatever the attachment holds. It succeeds when there is
// nothing to give back, and needs no more of the configuration than the
// network's name and ipam.dataDir: a configuration that was broken since Add
// does not keep a pod from going.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	store, _, err := openStore(args.StdinData)
	if err != nil {
		return err
	}
	if there, err := store.Exists(); err != nil || !there {
		return coded(err)
	}
	return coded(p.update(ctx, store, func(tx ipam.Tx, _ string) error {
		return ipam.Release(tx, owner(args), p.Now())
	}))
}

// Check verifies that the attachment still holds addresses and, where the
// configuration carries a prevResult, that it lists all of them. Addresses that
// other plugins of the chain added to it are not this plugin's concern.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	store, conf, err := openStore(args.StdinData)
	if err != nil {
		return err
	}
	prev, err := conf.prevResult()
	if err != nil {
		return err
	}
	addrs, err := p.held(ctx, store, owner(args))
	if err != nil {
		return coded(err)
	}
	if len(addrs) == 0 {
		return types.NewError(ErrNotAllocated, owner(args).String()+" holds no address", "")
	}
	if prev == nil {
		return nil
	}
	for _, addr := range addrs {
		if !slices.ContainsFunc(prev.IPs, func(c *types100.IPConfig) bool { return addrOf(c) == addr }) {
			return types.NewError(ErrNotAllocated, fmt.Sprintf("%s holds %s, which prevResult does not list", owner(args), addr), "")
		}
	}
	return nil
}

// update runs f in a transaction in which every row is of the running boot.
func (p *Plugin) update(ctx context.Context, store *disk.Store, f func(tx ipam.Tx, boot string) error) error {
	boot, err := p.BootID()
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return store.Update(ctx, func(tx ipam.Tx) error {
		if err := ipam.Reclaim(tx, boot); err != nil {
			return err
		}
		return f(tx, boot)
	})
}

// held reads what the attachment holds in the running boot.
func (p *Plugin) held(ctx context.Context, store *disk.Store, o ipam.Owner) (addrs []netip.Addr, err error) {
	err = p.view(ctx, store, func(tx ipam.Tx, boot string) error {
		lease, err := ipam.Held(tx, o)
		if lease.Boot == boot {
			addrs = lease.Addrs
		}
		return err
	})
	return addrs, err
}

func owner(args *skel.CmdArgs) ipam.Owner {
	return ipam.Owner{ContainerID: args.ContainerID, IfName: args.IfName}
}

func ipConfig(a ipam.Address) *types100.IPConfig {
	addr := a.Prefix.Addr()
	return &types100.IPConfig{
		Address: net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(a.Prefix.Bits(), addr.BitLen())},
		Gateway: a.Gateway.AsSlice(), // nil if there is none
	}
}

func addrOf(c *types100.IPConfig) netip.Addr {
	addr, _ := netip.AddrFromSlice(c.Address.IP)
	return addr.Unmap()
}
