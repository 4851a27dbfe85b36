package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/fairlead/fairlead/cni/link"
)

// Check compares the bridge and the port of pod, which is the pod's interface,
// with the configuration and Result, and returns what differs, in words. The
// error says what could not be read.
//
// What other plugins of a chain may have changed (MTU, rates) is not
// looked at.
func (a *Attachment) Check(pod link.Device) ([]string, error) {
	_, err := a.findBridge()
	if errors.Is(err, link.ErrNoDevice) {
		return []string{fmt.Sprintf("bridge %s is gone", a.Config.Bridge)}, nil
	}
	if err != nil {
		return nil, err
	}
	differences := a.checkReported(a.bridge)
	if !a.bridge.Up {
		differences = append(differences, fmt.Sprintf("bridge %s is down", a.bridge.Name))
	}
	if a.Config.PromiscMode && !a.bridge.Promisc {
		differences = append(differences, fmt.Sprintf("bridge %s is not promiscuous", a.bridge.Name))
	}
	gateways, err := a.checkGateways()
	if err != nil {
		return nil, err
	}
	port, err := a.checkPort(pod)
	if err != nil {
		return nil, err
	}
	return slices.Concat(differences, gateways, port), nil
}

// checkGateways looks for the gateways of Result on the bridge.
func (a *Attachment) checkGateways() ([]string, error) {
	if !a.Config.IsGateway || len(a.Result.IPs) == 0 {
		return nil, nil
	}
	_, err := a.findGateway()
	if errors.Is(err, link.ErrNoDevice) {
		return []string{fmt.Sprintf("interface %s of the gateway is gone", a.Config.gatewayName())}, nil
	}
	if err != nil {
		return nil, err
	}
	present, err := a.Host.Addresses(a.gateway)
	if err != nil {
		return nil, err
	}
	var differences []string
	for _, ip := range a.Result.IPs {
		gateway, ok := netip.AddrFromSlice(ip.Gateway)
		if !ok {
			continue
		}
		if !slices.ContainsFunc(present, func(p link.Address) bool { return p.Addr() == gateway.Unmap() }) {
			differences = append(differences, fmt.Sprintf("bridge %s does not have the gateway's address %s", a.gateway.Name, ip.Gateway))
		}
	}
	return differences, nil
}

// checkPort looks at the host's end of the pod's interface. It goes by the
// kernel's word for it and not by PortName: the pod may have been attached by
// the reference plugin, before the configuration was changed to this one.
func (a *Attachment) checkPort(pod link.Device) ([]string, error) {
	if pod.Kind != vethKind {
		return []string{fmt.Sprintf("interface %s is a %s, not a veth", pod.Name, pod.Kind)}, nil
	}
	port, err := a.Host.DeviceAt(pod.Peer)
	if errors.Is(err, link.ErrNoDevice) || err == nil && (port.Kind != vethKind || port.Peer != pod.Index) {
		return []string{fmt.Sprintf("interface %s has no other end on the host", pod.Name)}, nil
	}
	if err != nil {
		return nil, err
	}
	differences := a.checkReported(port)
	if !port.Up {
		differences = append(differences, fmt.Sprintf("port %s is down", port.Name))
	}
	if port.Master != a.bridge.Index {
		return append(differences, fmt.Sprintf("%s is not a port of bridge %s", port.Name, a.bridge.Name)), nil
	}
	settings, err := a.checkSettings(port)
	if err != nil {
		return nil, err
	}
	filtered, err := a.checkFilter(port, pod)
	return slices.Concat(differences, settings, filtered), err
}

// checkSettings looks at how the bridge treats the port.
func (a *Attachment) checkSettings(port link.Device) ([]string, error) {
	is, err := a.Host.Port(port)
	if err != nil {
		return nil, err
	}
	var differences []string
	if is.Hairpin != a.Config.HairpinMode {
		differences = append(differences, fmt.Sprintf("hairpin mode of port %s is %t, not %t", port.Name, is.Hairpin, a.Config.HairpinMode))
	}
	if is.Isolated != a.Config.PortIsolation {
		differences = append(differences, fmt.Sprintf("isolation of port %s is %t, not %t", port.Name, is.Isolated, a.Config.PortIsolation))
	}
	vlans, err := a.checkVLANs(port)
	return append(differences, vlans...), err
}

// checkReported compares an interface of the host with what Result says of it.
func (a *Attachment) checkReported(d link.Device) []string {
	i := slices.IndexFunc(a.Result.Interfaces, func(r *types100.Interface) bool {
		return r.Name == d.Name && r.Sandbox == ""
	})
	if i < 0 {
		return []string{fmt.Sprintf("prevResult has no interface %s of the host", d.Name)}
	}
	if mac := a.Result.Interfaces[i].Mac; mac != "" && mac != d.MAC.String() {
		return []string{fmt.Sprintf("hardware address of %s is %s, not %s", d.Name, d.MAC, mac)}
	}
	return nil
}
