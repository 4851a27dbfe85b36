// Package way asks the kernel of this node which way a packet goes on from here: by
// which route and device, through which tunnel, and whether NAT gives it another
// source.
//
//	packet ──▶ routes, neighbours, tunnels (route.go) ──▶ device
//	                                                        │
//	           rules of nftables (nft.go), iptables (iptables.go) ──▶ source
//
// What the kernel has counts, whoever made it. Routes it is asked for; rules, which it
// lets nobody try, are read and followed as it would follow them. Nothing is sent and
// nothing is changed.
package way

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Packet is the first packet of a flow.
type Packet struct {
	Src      netip.Addr
	Dst      netip.AddrPort // port 0: any
	Protocol uint8          // of IP, as in unix.IPPROTO_TCP; 0: any
	// Past: it is led past netfilter, whose rules do not see it.
	Past bool
}

// Way is how a packet goes on.
type Way struct {
	In    string `json:"in,omitempty"`    // device by which it comes in; "": it begins here
	Error string `json:"error,omitempty"` // why it goes no further
	Local bool   `json:"local,omitempty"` // it is for this node itself

	Device string     `json:"device,omitempty"` // by which it leaves
	Via    netip.Addr `json:"via,omitzero"`     // the next router
	Route  string     `json:"route,omitempty"`  // that counts, in words of ip-route(8)
	Tunnel *Tunnel    `json:"tunnel,omitempty"`
	// Silent says which neighbour does not answer; "": none of which that is known.
	Silent string `json:"silent,omitempty"`
	NAT    NAT    `json:"nat,omitzero"`
}

// Tunnel is the outside of a packet that leaves in VXLAN (RFC 7348).
type Tunnel struct {
	VNI    int        `json:"vni"`
	Remote netip.Addr `json:"remote"` // the node that takes it out again
	Device string     `json:"device"` // by which that is reached
}

// NAT is what becomes of a packet's source.
type NAT struct {
	Masqueraded bool       `json:"masqueraded"`
	To          netip.Addr `json:"to,omitzero"` // the source it gets, as far as that is known
	Why         string     `json:"why"`
	// Past: rules would give it another source, as Why says, but do not see it.
	Past bool `json:"past,omitempty"`
	// Perhaps are rules that concern the packet if it is as they say of what only they know.
	Perhaps []string `json:"perhaps,omitempty"`
}

// Find asks the kernel of the network namespace of the calling thread.
func Find(ctx context.Context, p Packet) Way {
	r := newRules(ctx)
	defer r.close()
	p.Src, p.Dst = p.Src.Unmap(), netip.AddrPortFrom(p.Dst.Addr().Unmap(), p.Dst.Port())
	w := route(p)
	if w.Error == "" && !w.Local {
		w.NAT = r.nat(p, w)
	}
	if p.Past {
		w.NAT = w.NAT.unseen()
	}
	return w
}

// Masqueraded says, in the order of the destinations, whether what a sender sends there
// gets another source here, whatever its protocol. It asks the kernel of the network
// namespace of the calling thread, for its rules once.
func Masqueraded(ctx context.Context, src netip.Addr, to []netip.Addr) []bool {
	r := newRules(ctx)
	defer r.close()
	out := make([]bool, len(to))
	in, _, _ := Entry(src)
	for i, dst := range to {
		p := Packet{Src: src, Dst: netip.AddrPortFrom(dst, 0)}
		route, err := askRoute(p, in, false)
		if err != nil { // no route leads to the sender yet, or another way than it would come
			route, err = askRoute(Packet{Dst: p.Dst}, "", false)
		}
		if err == nil && route.Type != unix.RTN_LOCAL {
			w := Way{In: in, Device: deviceName(route.LinkIndex), Via: gatewayOf(route)}
			out[i] = r.nat(p, w).Masqueraded
		}
	}
	return out
}

// unseen is what becomes of a source where the rules do not see the packet.
func (n NAT) unseen() NAT {
	return NAT{Past: n.Masqueraded, Why: n.Why}
}

// String is one sentence without an end.
func (w Way) String() string {
	if w.Error != "" {
		return w.Error
	}
	if w.Local {
		return "this node itself"
	}
	text := "by " + w.Device
	if w.Via.IsValid() {
		text += fmt.Sprintf(", via %s", w.Via)
	}
	if t := w.Tunnel; t != nil {
		text += fmt.Sprintf(", in VXLAN %d to %s by %s", t.VNI, t.Remote, t.Device)
	}
	if w.Silent != "" {
		text += ", but " + w.Silent
	}
	return text
}

// String says whether and why.
func (n NAT) String() string {
	text := "no: " + n.Why
	if n.Masqueraded {
		text = "yes: " + n.Why
	}
	if n.Masqueraded && n.To.IsValid() {
		text = fmt.Sprintf("yes, to %s: %s", n.To, n.Why)
	}
	if len(n.Perhaps) > 0 {
		text += "; unless " + strings.Join(n.Perhaps, ", or ")
	}
	return text
}
