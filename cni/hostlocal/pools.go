package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/ipam"
	"github.com/fairlead/fairlead/ipam/disk"
)

// pools decodes ipam.pools.
func (c addConf) pools() ([]string, error) {
	var pools []string
	for i, value := range c.IPAM.Pools {
		path := fmt.Sprintf("ipam.pools[%d]", i)
		name, _ := value.(string)
		if !isPoolName(name) {
			return nil, invalid(path, "%s is not allowed: it must be the name of an IPPool", shown(value))
		}
		if slices.Contains(pools, name) {
			return nil, invalid(path, "%s is there twice: a pod gets one address of a pool", shown(value))
		}
		pools = append(pools, name)
	}
	return pools, nil
}

// isPoolName says that name can be that of an object of the API (RFC 1123), of
// which more is for the API server to check.
func isPoolName(name string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyz0123456789-."
	return name != "" && len(name) < 254 && strings.Trim(name, allowed) == ""
}

// withPools returns the configured sets and, after them, one for each pool, with
// the routes that its addresses need. It notes that the pools are wanted.
func (a *addition) withPools(tx ipam.Tx, boot string, now time.Time) ([]ipam.Set, []*types.Route, error) {
	sets, err := a.allSets(tx, boot)
	if err != nil {
		return nil, nil, err
	}
	var routes []*types.Route
	for _, pool := range a.pools {
		if err := ipam.Want(tx, pool, now); err != nil {
			return nil, nil, err
		}
		state, err := ipam.StateOf(tx, pool)
		if err != nil {
			return nil, nil, err
		}
		for _, r := range state.Routes {
			routes = append(routes, routeOf(r))
		}
	}
	return sets, routes, nil
}

// allSets are the configured ones and those of the pools.
func (a *addition) allSets(tx ipam.Tx, boot string) ([]ipam.Set, error) {
	pooled, err := ipam.PoolSets(tx, boot, a.pools)
	if err != nil {
		return nil, err
	}
	for i, set := range pooled {
		for _, own := range slices.Concat(a.sets...) {
			if j := slices.IndexFunc(set, own.Overlaps); j >= 0 {
				return nil, invalid(fmt.Sprintf("ipam.pools[%d]", i), "block %s of pool %s overlaps %s of ipam.ranges", set[j], a.pools[i], own)
			}
		}
	}
	return slices.Concat(a.sets, pooled), nil
}

// ready says whether an ADD would find its addresses.
func (a *addition) ready(tx ipam.Tx, boot string, now time.Time) error {
	sets, err := a.allSets(tx, boot)
	if err == nil {
		err = ipam.Ready(tx, boot, sets, now)
	}
	if known := (*types.Error)(nil); errors.As(err, &known) {
		return err
	}
	if lost := ipam.CheckLost(tx, boot, a.pools); lost != nil {
		return errors.Join(err, lost)
	}
	return err
}

// demand notes that pools are wanted of which an ADD found no block: what it
// noted itself went with its transaction.
func (p *Plugin) demand(ctx context.Context, store *disk.Store, pools []string, cause error) error {
	if none := (*ipam.NoBlockError)(nil); !errors.As(cause, &none) {
		return nil
	}
	return coded(p.update(ctx, store, func(tx ipam.Tx, _ string) error {
		for _, pool := range pools {
			if err := ipam.Want(tx, pool, p.Now()); err != nil {
				return err
			}
		}
		return nil
	}))
}

func routeOf(r ipam.PoolRoute) *types.Route {
	route := &types.Route{Dst: net.IPNet{IP: r.Dst.Addr().AsSlice(), Mask: net.CIDRMask(r.Dst.Bits(), r.Dst.Addr().BitLen())}}
	if r.Via.IsValid() {
		route.GW = r.Via.AsSlice()
		return route
	}
	link := unix.RT_SCOPE_LINK
	route.Scope = &link
	return route
}
