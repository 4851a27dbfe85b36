// Package bridge attaches a pod to a bridge of the node, as the reference
// bridge plugin does:
//
//	pod's namespace          host's namespace
//	eth0 ───────veth─────── veth3f… ──port── cni0 (gateway's address)
//
// It makes and changes what is the mode's own: the bridge, the pair of
// interfaces, the gateway, the pod in the packet filter (package filter). What
// every pod gets in every mode (addresses, routes) is package cni's. It keeps no
// state: what exists is read from the kernel, the name of a pod's port follows
// from the pod, and everything that is a pod's says whose it is: ports by their
// group, the rest by comments.
//
// Pods and host get what the reference plugin gives them, with these
// differences:
//   - The hardware addresses of the bridge and of both ends are set, not chosen
//     by the kernel, so that neither ports nor systemd-udevd change them later.
//   - IPv6 addresses of pods and gateways are there at once, without duplicate
//     address detection, and IPv6 is turned on for the bridge where it is off.
//   - Neighbours are told of a pod's addresses when its port forwards, of IPv6
//     addresses too (ndisc_notify). The kernel's own word, when the interface
//     comes up, is lost, because the port does not forward yet.
//   - The pod's loopback is up.
//   - A bridge that does not look at VLANs is made to where the configuration has
//     some: pods would be in none, and nobody notice.
//   - ipMasq is elements of nftables sets, by default too. A pod's traffic to all
//     of its subnets is spared, and to nonMasqueradeCIDRs.
//   - macspoofchk checks IPv4 and IPv6 sources, ARP and NDP too, of pods with
//     IPAM, and these are no routers.
//   - Ports have a group, by which GC knows them.
//   - The host's end has the kernel's queue length, 1000, and not 0. Its
//     accept_ra is left alone: what comes in by a port is the bridge's.
//   - Both ends have one queue allocated and not one for each processor, of which
//     one is in use.
package bridge

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"time"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/filter"
	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/mode"
	"github.com/fairlead/fairlead/cni/step"
	"github.com/fairlead/fairlead/ebpf/pins"
)

// Attachment is one interface of one pod.
type Attachment struct {
	*mode.Attachment
	Config *Config

	bridge  link.Device
	gateway link.Device      // has the gateways' addresses
	mac     net.HardwareAddr // of the pod's interface
}

// Connect prepares the attachment of a pod's interface.
func (c *Config) Connect(a *mode.Attachment) mode.Connection {
	return &Attachment{Attachment: a, Config: c}
}

// Status reports what is in the way of the bridge.
func (c *Config) Status(host *link.NS) error {
	a := Attachment{Attachment: &mode.Attachment{Host: host}, Config: c}
	_, err := a.plan(nil)
	return err
}

// The interfaces of a result, by index.
const (
	bridgeInterface = iota
	portInterface
	podInterface // and, after it, the gateway's if it is not the bridge
)

// portLimit is how long a port may take to come up: some microseconds, except
// on a machine that does not come to its work at all.
const portLimit = 3 * time.Second

// What the kernel calls the two kinds of interface here.
const (
	bridgeKind = "bridge"
	vethKind   = "veth"
)

// PortName is the name of the host's end of a pod's interface: "veth" and 44
// bits of a hash of what the runtime calls the attachment, so that DEL finds it
// with nothing kept. Fifteen characters are all that the kernel allows.
func PortName(containerID, ifName string) string {
	hash := fnv.New64a()
	hash.Write([]byte(containerID + "/" + ifName))
	return "veth" + hex.EncodeToString(hash.Sum(nil))[:11]
}

// Add makes the bridge ready and connects the pod: its interface is there, down
// and without addresses.
func (a *Attachment) Add() (step.Undo, error) {
	gateways, err := a.Config.completeResult(a.Result)
	if err != nil {
		return nil, err
	}
	return step.Run(
		func() (step.Undo, error) { return a.readyBridge(gateways) },
		a.connect,
		a.setPort,
		a.serve,
		a.filter,
	)
}

// Settle is called when the pod's interface is up. It waits until the bridge
// forwards what comes from it, tells the neighbours whose address it has, and
// reports the interfaces as they are now.
func (a *Attachment) Settle() error {
	port, err := a.settledPort()
	if err != nil {
		return err
	}
	pod, err := a.Pod.Device(a.IfName)
	if err != nil {
		return err
	}
	// The bridge came up with its first port, and its MTU may follow them.
	bridge, err := a.Host.DeviceAt(a.bridge.Index)
	if err != nil {
		return err
	}
	if len(a.Result.IPs) != 0 {
		if err := a.Pod.Announce(pod); err != nil {
			return err
		}
	}
	a.Result.Interfaces = []*types100.Interface{
		bridgeInterface: report(bridge, ""),
		portInterface:   report(port, ""),
		podInterface:    report(pod, a.Sandbox),
	}
	if a.gateway.Index != 0 && a.gateway.Index != a.bridge.Index {
		a.Result.Interfaces = append(a.Result.Interfaces, report(a.gateway, ""))
	}
	return nil
}

// settledPort is the port as it stays.
func (a *Attachment) settledPort() (link.Device, error) {
	name := PortName(a.ContainerID, a.IfName)
	if a.Config.DisableContainerInterface {
		return a.Host.Device(name)
	}
	return a.Host.WaitRunning(name, portLimit)
}

func report(d link.Device, sandbox string) *types100.Interface {
	return &types100.Interface{Name: d.Name, Mac: d.MAC.String(), Mtu: d.MTU, Sandbox: sandbox}
}

// Del removes the pod's interface and its port, and what the packet filter has of
// it, and reports whether there was a port. The bridge stays, as with the
// reference plugin: other pods come. The configuration need not be complete, nor
// one that Add would take.
func (c *Config) Del(host *link.NS, owner mode.Owner) (found bool, err error) {
	err = filter.With(host, func(f *filter.Filter) error {
		forgotten := c.forget(f, host, owner)
		var removed error
		found, removed = removePort(host, owner)
		return errors.Join(forgotten, removed)
	})
	return found, err
}

// removePort leaves a port of another network alone: with the same name it has
// the same pod's interface, which was there when this network's ADD came.
func removePort(host *link.NS, owner mode.Owner) (found bool, err error) {
	port, err := host.Device(PortName(owner.ContainerID, owner.IfName))
	if errors.Is(err, link.ErrNoDevice) {
		return false, nil
	}
	if err != nil || mode.Foreign(port, owner.Network) {
		return true, err
	}
	return host.Delete(port.Name, vethKind)
}

func (a *Attachment) connect() (step.Undo, error) {
	a.mac = a.MAC
	if a.mac == nil {
		a.mac = link.NewMAC()
	}
	pair := link.Veth{
		Name:    PortName(a.ContainerID, a.IfName),
		MAC:     link.NewMAC(),
		Master:  a.bridge,
		Group:   mode.Group(a.Network),
		MTU:     a.Config.MTU,
		Peer:    a.IfName,
		PeerNS:  a.Pod,
		PeerMAC: a.mac,
	}
	err := a.Host.AddVeth(pair)
	if errors.Is(err, unix.EEXIST) {
		return nil, a.explainExists(pair, err)
	}
	if err != nil {
		return nil, err
	}
	return func() error {
		_, err := removePort(a.Host, a.Owner())
		return err
	}, nil
}

// explainExists says which name was taken. The pod's was free when ADD began, so
// as a rule it is the port's, left by an ADD for the same pod whose process died.
func (a *Attachment) explainExists(pair link.Veth, err error) error {
	if _, found := a.Host.Device(pair.Name); found == nil {
		return fmt.Errorf("the host has the port of container %s, interface %s, already: DEL removes it: %w",
			a.ContainerID, a.IfName, err)
	}
	return err
}

// serve has the service proxy's program see what the pod sends, from its first packet
// on. If that fails it is no reason not to have the pod: the proxy will do it when it
// hears of the port. It goes when the port goes.
func (a *Attachment) serve() (step.Undo, error) {
	if pins.None(a.Config.BPFRoot) {
		return nil, nil
	}
	port, err := a.Host.Device(PortName(a.ContainerID, a.IfName))
	if err != nil {
		return nil, err
	}
	_ = pins.AttachPort(a.Config.BPFRoot, port.Index)
	return nil, nil
}

// setPort has the bridge treat the port as the configuration asks for. It needs
// no undo: the port goes as a whole.
func (a *Attachment) setPort() (step.Undo, error) {
	c := a.Config
	if !c.HairpinMode && !c.PortIsolation && !c.filtersVLANs() {
		return nil, nil
	}
	port, err := a.Host.Device(PortName(a.ContainerID, a.IfName))
	if err != nil {
		return nil, err
	}
	if c.HairpinMode {
		if err := a.Host.SetHairpin(port, true); err != nil {
			return nil, err
		}
	}
	if c.PortIsolation {
		if err := a.Host.SetIsolated(port, true); err != nil {
			return nil, err
		}
	}
	return nil, a.setVLANs(port, c.vlans())
}
