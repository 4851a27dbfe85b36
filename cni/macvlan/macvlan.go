// Package macvlan gives a pod an interface with a hardware address of its own on
// the link of an interface of the node, its master, as the reference macvlan
// plugin does:
//
//	pod's namespace     host's namespace
//	eth0 ──macvlan────── eth0 (master) ── the network outside
//
// There is no other end on the host, and nothing is kept: DEL removes the pod's
// interface, and with the pod's namespace it goes by itself. Host and pods do not
// reach each other by the master; that is the kernel's way.
//
// # From the reference plugin
//
// The keys are the reference plugin's. Its key mode is macvlanMode here, beside
// "mode": "macvlan". A configuration of the reference plugin of which only the
// type was changed works too:
//
//	mode                       other keys                     what it is
//	macvlan                    macvlanMode or none            macvlan, in mode macvlanMode or bridge
//	private, vepa, passthru    macvlanMode the same or none   macvlan, in that mode
//	bridge, or none            one of macvlan alone           macvlan, in mode macvlanMode or bridge
//	bridge, or none            none of macvlan alone          a bridge (package bridge)
//
// The keys of macvlan alone are master, macvlanMode, linkInContainer and
// bcqueuelen. Together with a key of package bridge alone, mode must be
// "macvlan" or one of them go. So the one configuration that has to be given a
// "mode": "macvlan" is that which has none of these keys, and takes the link of
// the default route.
//
// What a pod gets is what the reference plugin gives it, with these differences:
//   - Its hardware address is set, not left to the kernel, so that it counts as
//     decided. In mode passthru mac, where it is given, is obeyed: the master
//     takes it on as long as the pod is there.
//   - IPv6 addresses are there at once, without duplicate address detection, the
//     link-local one too. The key enabledad, from the bridge plugin, has it
//     done.
//   - Routes have the mtu and advmss that IPAM gives them.
//   - DNS settings of IPAM are kept where the configuration has none.
//   - The interface has a group, by which DEL knows it from another network's.
//   - The result has the interface's MTU, and the pod's loopback is up.
package macvlan

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/cni/step"
)

// Kind is what the kernel calls the pod's interface.
const Kind = "macvlan"

// Attachment is one interface of one pod.
type Attachment struct {
	*mode.Attachment
	Config *Config
}

// Connect prepares the attachment of a pod's interface.
func (c *Config) Connect(a *mode.Attachment) mode.Connection {
	return &Attachment{Attachment: a, Config: c}
}

// Add makes the pod's interface: down and without addresses.
func (a *Attachment) Add() (step.Undo, error) {
	master, err := a.Config.findMaster(a.masterNS())
	if err != nil {
		return nil, err
	}
	for _, ip := range a.Result.IPs {
		ip.Interface = types100.Int(0) // the only one
	}
	return step.Run(
		func() (step.Undo, error) { return a.addLink(master) },
		a.setPassthruMAC,
	)
}

// masterNS is the namespace that the master is in.
func (a *Attachment) masterNS() *link.NS {
	if a.Config.LinkInContainer {
		return a.Pod
	}
	return a.Host
}

func (a *Attachment) addLink(master link.Device) (step.Undo, error) {
	m := link.Macvlan{
		Name:       a.IfName,
		MAC:        a.mac(),
		MTU:        a.Config.MTU,
		Group:      mode.Group(a.Network),
		Master:     master,
		Mode:       a.Config.mode,
		BCQueueLen: a.Config.BCQueueLen,
		NS:         a.Pod,
	}
	if m.MAC == nil {
		m.MAC = link.NewMAC()
	}
	err := a.masterNS().AddMacvlan(m)
	if errors.Is(err, unix.EEXIST) {
		return a.addRenamed(m)
	}
	if err != nil {
		return nil, a.explain(master, err)
	}
	return a.remover(a.IfName), nil
}

// addRenamed makes the interface on kernels before 6.15, where its name must
// also be free in the namespace of the master: it is eth0 in most pods, and so is
// the master on most nodes.
func (a *Attachment) addRenamed(m link.Macvlan) (step.Undo, error) {
	m.Name = "mv" + strings.ReplaceAll(link.NewMAC().String(), ":", "") // nobody's name
	_, err := step.Run(
		func() (step.Undo, error) { return a.remover(m.Name), a.masterNS().AddMacvlan(m) },
		func() (step.Undo, error) { return nil, a.rename(m.Name) },
	)
	if err != nil {
		return nil, a.explain(m.Master, err)
	}
	return a.remover(a.IfName), nil
}

func (a *Attachment) rename(from string) error {
	device, err := a.Pod.Device(from)
	if err != nil {
		return err
	}
	return a.Pod.Rename(device, a.IfName)
}

func (a *Attachment) remover(name string) step.Undo {
	return func() error {
		_, err := a.Pod.Delete(name, Kind)
		return err
	}
}

// mac is the hardware address that is asked for: what the runtime wants goes
// before the configuration. nil is any.
func (a *Attachment) mac() net.HardwareAddr {
	if a.MAC != nil {
		return a.MAC
	}
	return a.Config.mac
}

// setPassthruMAC gives the interface the address that is asked for after it was
// made: made in mode passthru, it gets the master's whatever is asked for. The
// master changes its own along with it, until the interface goes.
func (a *Attachment) setPassthruMAC() (step.Undo, error) {
	if a.Config.mode != "passthru" || a.mac() == nil {
		return nil, nil
	}
	device, err := a.Pod.Device(a.IfName)
	if err != nil {
		return nil, err
	}
	return nil, a.Pod.SetMAC(device, a.mac())
}

// Settle reports the pod's interface, which is up by now.
//
// Neighbours know its addresses already: with arp_notify and ndisc_notify the
// kernel announces them when an interface comes up, and a macvlan sends from that
// moment on, unlike the port of a bridge.
func (a *Attachment) Settle() error {
	device, err := a.Pod.Device(a.IfName)
	if err != nil {
		return err
	}
	a.Result.Interfaces = []*types100.Interface{
		{Name: device.Name, Mac: device.MAC.String(), Mtu: device.MTU, Sandbox: a.Sandbox},
	}
	return nil
}

// Status reports what is in the way of the next pod's interface.
func (c *Config) Status(host *link.NS) error {
	if c.LinkInContainer {
		return nil // each pod brings its own master
	}
	master, err := c.findMaster(host)
	if err != nil {
		return err
	}
	return refusePort(host, master)
}

func invalid(format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf(format, args...), "")
}
