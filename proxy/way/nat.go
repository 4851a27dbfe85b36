package way

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// rules are those of the node, which are read when somebody first asks for them, once.
type rules struct {
	nft    nftRules
	legacy map[bool]legacyRules // of IPv4, of IPv6
	ctx    context.Context      // of one call from outside
}

func newRules(ctx context.Context) *rules {
	return &rules{legacy: map[bool]legacyRules{}, ctx: ctx}
}

func (r *rules) close() { r.nft.close() }

// verdict is what a rule or chain says of a packet.
type verdict int

const (
	goOn    verdict = iota // nothing: the next rule
	back                   // return to the chain that led here
	accept                 // enough of this table
	drop                   // no further
	rewrite                // another source
)

// passage is a packet on its way through the rules.
type passage struct {
	Packet
	in, out string // devices
	next    netip.Addr

	ip        []byte // header, as far as it is known
	transport []byte

	by      string       // which rules gave it another source
	to      netip.Addr   // if they say which
	exempt  netip.Prefix // range for which a chain was left, if one was
	exempts string       // by whom
	// Rules that ask for what is not known: those that may give another source, and those
	// that may keep it.
	may, mayNot []string
}

// doubt notes a rule that asks for what is not known. gives: it would give another
// source. leads: it leads to other rules.
func (g *passage) doubt(where, asks string, gives, leads bool) {
	text := fmt.Sprintf("%s says otherwise, whose rule asks for %s", where, asks)
	if gives || leads {
		g.may = append(g.may, text)
	}
	if !gives {
		g.mayNot = append(g.mayNot, text)
	}
}

// nat follows a packet through all rules that can give it another source.
func (r *rules) nat(p Packet, w Way) NAT {
	next := w.next(p)
	g := &passage{Packet: p, in: w.In, out: w.Device, next: next}
	g.ip, g.transport = headers(p)
	var unread []string
	masqueraded := false
	for _, through := range []func(*passage) (bool, error){r.throughNFTables, r.throughLegacy} {
		done, err := through(g)
		if err != nil {
			unread = append(unread, err.Error()+" says otherwise")
		}
		if masqueraded = done; done {
			break
		}
	}
	n := NAT{Masqueraded: masqueraded, Perhaps: append(g.may, unread...)}
	if masqueraded {
		n.Perhaps = append(g.mayNot, unread...)
	}
	switch {
	case masqueraded:
		n.Why = reasonOf(g.by)
		if n.To = g.to; !n.To.IsValid() {
			n.To = sourceAt(w.Device, next)
		}
	case g.exempt.IsValid() && g.exempt.IsSingleIP():
		n.Why = fmt.Sprintf("%s goes without (%s)", p.Dst.Addr(), g.exempts)
	case g.exempt.IsValid():
		n.Why = fmt.Sprintf("what goes to %s goes without (%s)", g.exempt, g.exempts)
	default:
		n.Why = fmt.Sprintf("no rule here concerns what %s sends there", p.Src)
	}
	return n
}

// reasons says why those tables give another source that are ours.
var reasons = []struct{ by, why string }{
	{"fairlead-node", "it leaves the cluster, where nobody knows the way back to a pod"},
	{"FLNODE-MASQ", "it leaves the cluster, where nobody knows the way back to a pod"},
	{"fairlead-cni", "the pod's network has ipMasq"},
	{"FLCNI-MASQ", "the pod's network has ipMasq"},
	{"fairlead-shim", "a macvlan pod would be answered past this node"},
}

func reasonOf(by string) string {
	for _, r := range reasons {
		if strings.Contains(by, r.by) {
			return r.why + " (" + by + ")"
		}
	}
	return "rules of others say so (" + by + ")"
}

// proxys begins the names of the chains of 'fairlead proxy'. What they do to a flow to
// a Service the Table says; of others they say nothing.
const proxys = "FAIRLEAD-"

// headers are the headers of a packet as far as rules may look at them: addresses,
// protocol and destination port.
func headers(p Packet) (ip, transport []byte) {
	if p.Src.Is4() {
		ip = make([]byte, 20) // RFC 791, section 3.1
		ip[0], ip[9] = 0x45, p.Protocol
		copy(ip[12:], p.Src.AsSlice())
		copy(ip[16:], p.Dst.Addr().AsSlice())
	} else {
		ip = make([]byte, 40) // RFC 8200, section 3
		ip[0], ip[6] = 0x60, p.Protocol
		copy(ip[8:], p.Src.AsSlice())
		copy(ip[24:], p.Dst.Addr().AsSlice())
	}
	transport = make([]byte, 4)
	binary.BigEndian.PutUint16(transport[2:], p.Dst.Port())
	return ip, transport
}

// span is a part of a header, in bytes.
type span struct{ from, to uint32 }

func (s span) has(from, to uint32) bool { return s.from <= from && to <= s.to }

// destination is where the address is in the header.
func (g *passage) destination() span {
	if g.Src.Is4() {
		return span{16, 20}
	}
	return span{24, 40}
}

// knows says whether a part of the IP header is one that headers knows.
func (g *passage) knows(from, to uint32) bool {
	protocol, addrs := span{6, 7}, span{8, 40}
	if g.Src.Is4() {
		protocol, addrs = span{9, 10}, span{12, 20}
	}
	return addrs.has(from, to) || g.Protocol != 0 && protocol.has(from, to)
}

// family is the packet's number among those of netfilter.
func (g *passage) family() byte {
	if g.Src.Is4() {
		return unix.NFPROTO_IPV4
	}
	return unix.NFPROTO_IPV6
}
