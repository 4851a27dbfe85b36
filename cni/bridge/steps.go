package bridge

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/step"
)

// findBridge sets a.bridge. The error wraps link.ErrNoDevice if there is none.
func (a *Attachment) findBridge() (step.Undo, error) {
	found, err := a.Host.Device(a.Config.Bridge)
	if err != nil {
		return nil, err
	}
	if found.Kind != bridgeKind {
		return nil, fmt.Errorf("bridge: interface %s is a %s, not a bridge", found.Name, found.Kind)
	}
	a.bridge = found
	return nil, nil
}

func (a *Attachment) addBridge() (step.Undo, error) {
	return a.removeBridge, a.Host.AddBridge(link.Bridge{
		Name: a.Config.Bridge, MAC: link.NewMAC(), MTU: a.Config.MTU, VLANFiltering: a.Config.filtersVLANs(),
	})
}

// removeBridge takes back the bridge that this ADD made, unless somebody who
// does not know our lock has made something a port of it.
func (a *Attachment) removeBridge() error {
	found, err := a.Host.Device(a.Config.Bridge)
	if errors.Is(err, link.ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	ports, err := a.Host.Ports(found)
	if err != nil || len(ports) != 0 {
		return err
	}
	_, err = a.Host.Delete(found.Name, bridgeKind)
	return err
}

func (a *Attachment) setUp() (step.Undo, error) {
	return func() error { return a.Host.SetDown(a.bridge) }, a.Host.SetUp(a.bridge)
}

func (a *Attachment) setPromisc() (step.Undo, error) {
	return func() error { return a.Host.SetPromisc(a.bridge, false) }, a.Host.SetPromisc(a.bridge, true)
}

func (a *Attachment) setAll(values []link.Sysctl) []step.Func {
	var changes []step.Func
	for _, s := range values {
		changes = append(changes, a.set(s))
	}
	return changes
}

// set has no undo: other programs may rely on forwarding as soon as it is on,
// and the next ADD would set the same again.
func (a *Attachment) set(s link.Sysctl) step.Func {
	return func() (step.Undo, error) { return nil, a.Host.SetSysctls(s) }
}

func (a *Attachment) addAddress(addr netip.Prefix) step.Func {
	return func() (step.Undo, error) {
		return func() error { return a.Host.DeleteAddress(a.gateway, link.Address{Prefix: addr}) }, a.Host.AddAddress(a.gateway, addr)
	}
}

func (a *Attachment) deleteAddress(addr link.Address) step.Func {
	return func() (step.Undo, error) {
		return func() error { return a.Host.RestoreAddress(a.gateway, addr) }, a.Host.DeleteAddress(a.gateway, addr)
	}
}

// pinMAC keeps the hardware address of a bridge that somebody else made from
// following its ports (see link.AddBridge). It cannot be undone, and does not
// show.
func (a *Attachment) pinMAC() (step.Undo, error) {
	return nil, a.Host.SetMAC(a.bridge, a.bridge.MAC)
}
