package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/link"
)

// Check compares a pod with what the runtime keeps of it, prevResult, and names
// everything that differs. What other plugins of the chain may change is not
// looked at.
func (p *Plugin) Check(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := load(args)
	if err != nil {
		return err
	}
	previous, err := conf.previous()
	if err != nil {
		return err
	}
	if previous == nil {
		return invalid("prevResult: CHECK needs the result of ADD, and there is none")
	}
	a, err := open(args, conf)
	if err != nil {
		return err
	}
	defer a.close()
	a.Result = previous
	a.Result.IPs = slices.DeleteFunc(a.Result.IPs, a.ofAnother)
	if err := a.conf.ipam.Check(ctx, args); err != nil {
		return err
	}
	differences, err := a.check()
	if err != nil {
		return err
	}
	if len(differences) != 0 {
		return errors.New(strings.Join(differences, "; "))
	}
	return nil
}

// ofAnother reports whether an address is of another interface than this
// attachment's: other plugins of the chain may have made some.
func (a *attachment) ofAnother(ip *types100.IPConfig) bool {
	if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(a.Result.Interfaces) {
		return false
	}
	return !a.isOwn(a.Result.Interfaces[*ip.Interface])
}

func (a *attachment) isOwn(r *types100.Interface) bool {
	return r.Name == a.IfName && r.Sandbox == a.Sandbox
}

// check returns what differs, in words.
func (a *attachment) check() ([]string, error) {
	device, err := a.Pod.Device(a.IfName)
	if errors.Is(err, link.ErrNoDevice) {
		return []string{fmt.Sprintf("the pod has no interface %s", a.IfName)}, nil
	}
	if err != nil {
		return nil, err
	}
	own, err := a.checkInterface(device)
	if err != nil {
		return nil, err
	}
	mode, err := a.connection.Check(device)
	if err != nil {
		return nil, err
	}
	return slices.Concat(own, mode), nil
}

func (a *attachment) checkInterface(device link.Device) ([]string, error) {
	i := slices.IndexFunc(a.Result.Interfaces, a.isOwn)
	if i < 0 {
		return []string{fmt.Sprintf("prevResult has no interface %s in %s", device.Name, a.Sandbox)}, nil
	}
	var differences []string
	if mac := a.Result.Interfaces[i].Mac; mac != "" && mac != device.MAC.String() {
		differences = append(differences, fmt.Sprintf("hardware address of %s is %s, not %s", device.Name, device.MAC, mac))
	}
	if !device.Up && !a.conf.DisableContainerInterface {
		differences = append(differences, fmt.Sprintf("interface %s is down", device.Name))
	}
	addresses, err := a.checkAddresses(device)
	if err != nil {
		return nil, err
	}
	routes, err := a.checkRoutes(device)
	if err != nil {
		return nil, err
	}
	return slices.Concat(differences, addresses, routes), nil
}

func (a *attachment) checkAddresses(device link.Device) ([]string, error) {
	present, err := a.Pod.Addresses(device)
	if err != nil {
		return nil, err
	}
	var differences []string
	for _, ip := range a.Result.IPs {
		wanted := prefix(ip.Address)
		if !slices.ContainsFunc(present, func(p link.Address) bool { return p.Prefix == wanted }) {
			differences = append(differences, fmt.Sprintf("interface %s does not have the address %s", device.Name, wanted))
		}
	}
	return differences, nil
}

// checkRoutes looks for the routes in any table, because a plugin later in the
// chain may have moved them, as sbr does, and by any interface, because the
// result does not say whose interface a route is of.
func (a *attachment) checkRoutes(device link.Device) ([]string, error) {
	if len(a.Result.Routes) == 0 {
		return nil, nil
	}
	present, err := a.allRoutes()
	if err != nil {
		return nil, err
	}
	var differences []string
	for _, r := range a.Result.Routes {
		wanted := a.route(r)
		if !slices.ContainsFunc(present, func(p link.Route) bool { return serves(p, wanted) }) {
			differences = append(differences, fmt.Sprintf("the pod does not have the route %s dev %s", wanted, device.Name))
		}
	}
	return differences, nil
}

func (a *attachment) allRoutes() ([]link.Route, error) {
	devices, err := a.Pod.Devices()
	if err != nil {
		return nil, err
	}
	var all []link.Route
	for _, device := range devices {
		routes, err := a.Pod.Routes(device)
		if err != nil {
			return nil, err
		}
		all = append(all, routes...)
	}
	return all, nil
}

// serves reports whether a route that is there is the one that is wanted.
func serves(present, wanted link.Route) bool {
	return present.Dst == netip.PrefixFrom(wanted.Dst.Addr(), wanted.Dst.Bits()).Masked() &&
		present.Via == wanted.Via &&
		(wanted.Priority == 0 || present.Priority == wanted.Priority)
}
