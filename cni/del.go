package cni

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/fairlead/fairlead/cni/bridge"
	"github.com/fairlead/fairlead/cni/iptables"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
)

// Del detaches a pod and gives its addresses back. It succeeds if there is
// nothing to detach, and also where ADD refused the configuration: a runtime
// calls it then too, and would never be rid of the pod.
//
// The interface goes before the addresses, so that none is given to another pod
// while this one can still use it.
func (p *Plugin) Del(ctx context.Context, args *skel.CmdArgs) error {
	var d document
	_ = decode(args.StdinData, &d) // of a value of the wrong type only that value is lost
	if err := deleteInterface(d.Name, args); err != nil {
		return err
	}
	plugin, err := d.IPAM.plugin()
	if err != nil {
		return nil // no ADD succeeded with it
	}
	ipam, err := newIPAM(plugin, args.Path)
	if err != nil {
		return err
	}
	return ipam.Del(ctx, args)
}

// deleteInterface finds the pod's interface by the name of its other end, for
// which it needs no namespace but the host's.
func deleteInterface(network string, args *skel.CmdArgs) error {
	host, err := link.Host()
	if err != nil {
		return err
	}
	defer host.Close()
	var config bridge.Config
	_ = decode(args.StdinData, &config)
	found, err := config.Del(host, mode.Owner{Network: network, ContainerID: args.ContainerID, IfName: args.IfName})
	if found || err != nil || args.Netns == "" {
		return err
	}
	return deleteInPod(host, network, args)
}

// deleteInPod removes an interface whose other end has another name, and its part in
// masquerading: one that the reference plugin made before the configuration was
// changed to this one.
func deleteInPod(host *link.NS, network string, args *skel.CmdArgs) error {
	pod, err := link.Open(args.Netns)
	if errors.Is(err, link.ErrNoNamespace) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pod.Close()
	if pod.Same(host) {
		return nil // an interface of the node itself
	}
	device, err := pod.Device(args.IfName)
	if errors.Is(err, link.ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	if theirs, err := isForeign(host, device, network); err != nil || theirs {
		return err
	}
	if _, err := pod.Delete(device.Name, drivers()...); err != nil || device.Kind != "veth" {
		return err
	}
	return iptables.StopReference(network, args.ContainerID)
}

// isForeign reports whether a pod's interface, or the other end of it, is one of
// another network of ours.
func isForeign(host *link.NS, device link.Device, network string) (bool, error) {
	if mode.Foreign(device, network) {
		return true, nil
	}
	if device.Peer == 0 {
		return false, nil
	}
	port, err := host.DeviceAt(device.Peer)
	if errors.Is(err, link.ErrNoDevice) {
		return false, nil
	}
	return port.Peer == device.Index && mode.Foreign(port, network), err
}
