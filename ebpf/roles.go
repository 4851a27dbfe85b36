package ebpf

import (
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"

	"github.com/fairlead/fairlead/ebpf/pins"
)

// role is what a link is to the packet path.
type role uint8

const (
	// none: a member of something that sees its packets itself, or is no concern.
	none role = iota
	// loopback has the node's packets to itself.
	loopback
	// routed has packets for the node as a router: a pod that has the link for
	// itself, a bridge, a network card, an overlay.
	routed
	// tunnel is routed without link headers.
	tunnel
	// bridgePort is a bridge's, with a pod behind it: what one pod sends to another does
	// not pass the bridge's own link.
	bridgePort
)

// roleOf tells the role of a link; master is the type of the link that it is a
// member of, "" if of none.
func roleOf(l netlink.Link, master string) role {
	switch {
	case l.Attrs().EncapType == "loopback":
		return loopback
	case master == "bridge" || master == "openvswitch":
		if slices.Contains([]string{"veth", "netkit"}, l.Type()) {
			return bridgePort
		}
		return none
	case master != "" && master != "vrf":
		return none // of a bond, or the like
	case l.Attrs().EncapType == "ether":
		return routed
	}
	return tunnel
}

// side is where packets pass on a link.
type side struct {
	name   string // the end of the pin's name
	attach ebpf.AttachType
}

var sides = []side{{pins.In, ebpf.AttachTCXIngress}, {"out", ebpf.AttachTCXEgress}}

// at is what runs there on links of a role, nil if nothing does.
func (p *bpfPrograms) at(s side, r role) *ebpf.Program {
	if s.attach == ebpf.AttachTCXEgress {
		return map[role]*ebpf.Program{loopback: p.PacketOut, routed: p.PacketOut, tunnel: p.PacketTunnelOut}[r]
	}
	return map[role]*ebpf.Program{routed: p.PacketIn, tunnel: p.PacketTunnelIn, bridgePort: p.PacketPortIn}[r]
}
