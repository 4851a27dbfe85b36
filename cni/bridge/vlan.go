package bridge

import (
	"fmt"
	"slices"

	"github.com/fairlead/fairlead/cni/link"
	"github.com/fairlead/fairlead/cni/step"
)

// Trunk is a range of VLANs, one VLAN, or both.
type Trunk struct {
	MinID *int `json:"minID"`
	MaxID *int `json:"maxID"`
	ID    *int `json:"id"`
}

const (
	maxVLAN = 4094 // IEEE 802.1Q: 4095 is reserved
	// nativeOfTrunks is the native VLAN of ports whose configuration has vlanTrunk
	// and not vlan, as with the reference plugin.
	nativeOfTrunks = 1
	maxIfName      = 15
)

// checkVLANs reports the first VLAN that is none.
func (c *Config) checkVLANs() error {
	if c.VLAN < 0 || c.VLAN > maxVLAN {
		return invalid("vlan: %d is out of range: 0 (no VLAN) to %d is allowed", c.VLAN, maxVLAN)
	}
	if name := c.gatewayName(); len(name) > maxIfName {
		return invalid("bridge: %q is too long for a gateway in a VLAN, whose interface would be %q: %d characters are allowed", c.Bridge, name, maxIfName)
	}
	for i, t := range c.VLANTrunk {
		if err := t.check(fmt.Sprintf("vlanTrunk[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (t Trunk) check(field string) error {
	for _, id := range []struct {
		name  string
		value *int
	}{{"minID", t.MinID}, {"maxID", t.MaxID}, {"id", t.ID}} {
		if id.value != nil && (*id.value < 1 || *id.value > maxVLAN) {
			return invalid("%s.%s: %d is out of range: 1 to %d is allowed", field, id.name, *id.value, maxVLAN)
		}
	}
	if (t.MinID == nil) != (t.MaxID == nil) {
		return invalid("%s: minID and maxID are allowed only together", field)
	}
	if t.MinID != nil && *t.MinID > *t.MaxID {
		return invalid("%s: minID %d is larger than maxID %d", field, *t.MinID, *t.MaxID)
	}
	return nil
}

// filtersVLANs reports whether the bridge must look at VLANs.
func (c *Config) filtersVLANs() bool { return c.VLAN != 0 || len(c.VLANTrunk) != 0 }

// vlans are those of a pod's port, the native one last: it may be among the
// others.
func (c *Config) vlans() []link.PortVLAN {
	var vlans []link.PortVLAN
	for _, t := range c.VLANTrunk {
		if t.MinID != nil {
			vlans = append(vlans, link.PortVLAN{First: *t.MinID, Last: *t.MaxID})
		}
		if t.ID != nil {
			vlans = append(vlans, link.PortVLAN{First: *t.ID, Last: *t.ID})
		}
	}
	switch {
	case c.VLAN != 0:
		vlans = append(vlans, link.PortVLAN{First: c.VLAN, Last: c.VLAN, Native: true})
	case len(c.VLANTrunk) != 0:
		vlans = append(vlans, link.PortVLAN{First: nativeOfTrunks, Last: nativeOfTrunks, Native: true})
	}
	return vlans
}

// setVLANs gives a new port its VLANs in the place of the one that the bridge
// gives to all. It needs no undo: they go with the port.
func (a *Attachment) setVLANs(port link.Device, vlans []link.PortVLAN) error {
	if len(vlans) == 0 {
		return nil
	}
	if fallback := a.bridge.VLAN.Default; fallback != 0 && !a.Config.PreserveDefaultVLAN {
		if err := a.Host.DeleteVLAN(port, fallback); err != nil {
			return err
		}
	}
	for _, v := range vlans {
		if err := a.Host.AddVLAN(port, v); err != nil {
			return err
		}
	}
	return nil
}

// setFiltering has the bridge look at VLANs. Pods of networks without one go on
// as before, in the bridge's default VLAN.
func (a *Attachment) setFiltering() (step.Undo, error) {
	return func() error { return a.Host.SetVLANFiltering(a.bridge, false) }, a.Host.SetVLANFiltering(a.bridge, true)
}

// gatewayName is the interface that has the gateways' addresses: the bridge, or
// one beside it in the VLAN of the pods, as with the reference plugin:
//
//	cni0.100 ───veth─── veth3f… ──port, native VLAN 100── cni0
func (c *Config) gatewayName() string {
	if c.VLAN == 0 || !c.IsGateway {
		return c.Bridge
	}
	return fmt.Sprintf("%s.%d", c.Bridge, c.VLAN)
}

// gatewayPort is the name of the other end. No container's id has a slash.
func (c *Config) gatewayPort() string { return PortName("gateway/"+c.Bridge, fmt.Sprint(c.VLAN)) }

// findGateway sets a.gateway. The error wraps link.ErrNoDevice if there is none.
func (a *Attachment) findGateway() (step.Undo, error) {
	if a.Config.gatewayName() == a.Config.Bridge {
		a.gateway = a.bridge
		return nil, nil
	}
	found, err := a.Host.Device(a.Config.gatewayName())
	a.gateway = found
	return nil, err
}

// addGateway makes the interface of the gateway in a VLAN. As the bridge it
// stays.
func (a *Attachment) addGateway() (step.Undo, error) {
	pair := link.Veth{
		Name:    a.Config.gatewayPort(),
		MAC:     link.NewMAC(),
		Master:  a.bridge,
		MTU:     a.bridge.MTU,
		Peer:    a.Config.gatewayName(),
		PeerNS:  a.Host,
		PeerMAC: link.NewMAC(),
	}
	_, err := step.Run(
		func() (step.Undo, error) { return a.removeGateway, a.Host.AddVeth(pair) },
		a.findGateway,
		func() (step.Undo, error) { return nil, a.setGatewayVLAN(pair.Name) },
		func() (step.Undo, error) { return nil, a.Host.SetUp(a.gateway) },
	)
	return a.removeGateway, err
}

// completeGateway ends what an ADD began whose process died between making the
// interface and setting it up, and brings back one whose bridge was made anew. It
// takes nothing away: other networks may have addresses on it.
func (a *Attachment) completeGateway() (step.Undo, error) {
	port, err := a.Host.DeviceAt(a.gateway.Peer)
	if err != nil {
		return nil, err
	}
	return step.Run(
		func() (step.Undo, error) { return nil, a.Host.SetMaster(port, a.bridge) },
		func() (step.Undo, error) { return nil, a.Host.SetUp(port) },
		func() (step.Undo, error) { return nil, a.setGatewayVLAN(port.Name) },
		func() (step.Undo, error) {
			return func() error { return a.Host.SetDown(a.gateway) }, a.Host.SetUp(a.gateway)
		},
	)
}

// gatewayWorks reports whether the gateway's interface is up, which is the last
// thing that happens to a new one, and its other end a port of the bridge, if that
// is there. One of another kind is whatever somebody else made of it.
func (a *Attachment) gatewayWorks() (bool, error) {
	if a.gateway.Index == a.bridge.Index || a.gateway.Kind != vethKind {
		return true, nil
	}
	port, err := a.Host.DeviceAt(a.gateway.Peer)
	return err == nil && a.bridge.Index != 0 && a.gateway.Up && port.Up && port.Master == a.bridge.Index, err
}

func (a *Attachment) setGatewayVLAN(portName string) error {
	port, err := a.Host.Device(portName)
	if err != nil {
		return err
	}
	return a.setVLANs(port, []link.PortVLAN{{First: a.Config.VLAN, Last: a.Config.VLAN, Native: true}})
}

func (a *Attachment) removeGateway() error {
	_, err := a.Host.Delete(a.Config.gatewayPort(), vethKind)
	return err
}

// checkVLANs returns what is missing of a port's VLANs.
func (a *Attachment) checkVLANs(port link.Device) ([]string, error) {
	wanted := a.Config.vlans()
	if len(wanted) == 0 {
		return nil, nil
	}
	present, err := a.Host.VLANs(port)
	if err != nil {
		return nil, err
	}
	var differences []string
	for _, v := range wanted {
		if !covers(present, v) {
			differences = append(differences, fmt.Sprintf("port %s does not have %s", port.Name, v))
		}
	}
	return differences, nil
}

// covers reports whether all of v is present.
func covers(present []link.PortVLAN, v link.PortVLAN) bool {
	for id := v.First; id <= v.Last; id++ {
		if !slices.ContainsFunc(present, func(p link.PortVLAN) bool { return p.First == id && (p.Native || !v.Native) }) {
			return false
		}
	}
	return true
}
