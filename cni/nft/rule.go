package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// draft is a description of a table. Its connection sends it when it is flushed.
type draft struct {
	conn   *nftables.Conn
	chains []*chain
}

func newDraft() (*draft, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &draft{conn: conn}, nil
}

// chain adds a chain with no rules yet, whatever rules one of its name has.
func (d *draft) chain(c nftables.Chain) *chain {
	made := &chain{conn: d.conn, Chain: d.conn.AddChain(&c)}
	d.conn.FlushChain(made.Chain)
	d.chains = append(d.chains, made)
	return made
}

// chain is a chain that gets its rules.
type chain struct {
	conn *nftables.Conn
	*nftables.Chain
	rules int // that it has got
}

// match is a part of a rule: it loads something into registers, compares them,
// or says what to do. A part that does not match ends the rule.
type match []expr.Any

// rule appends a rule.
func (c *chain) rule(parts ...match) {
	c.rules++
	c.conn.AddRule(&nftables.Rule{Table: c.Table, Chain: c.Chain, Exprs: slices.Concat(parts...)})
}

// The registers that parts hand their values on in, of 16 bytes each. A key of
// two fields begins in the first, and goes on in the second when the first field,
// the name of an interface, fills it.
const (
	firstRegister  = unix.NFT_REG_1
	secondRegister = unix.NFT_REG_2
)

// addresses is where a version of IP has its addresses.
type addresses struct {
	source, destination, length uint32
}

var (
	ipv4 = addresses{12, 16, net.IPv4len} // RFC 791, section 3.1
	ipv6 = addresses{8, 24, net.IPv6len}  // RFC 8200, section 3
)

// In tables of family inet, which have packets of both versions.
var (
	isIPv4 = equal(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: firstRegister}, []byte{unix.NFPROTO_IPV4})
	isIPv6 = equal(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: firstRegister}, []byte{unix.NFPROTO_IPV6})
)

func isFor(p netip.Prefix) match {
	if p.Addr().Is4() {
		return isIPv4
	}
	return isIPv6
}

func sourceOf(a addresses) match {
	return match{network(firstRegister, a.source, a.length)}
}

// sourceIn and destinationIn compare as many bits as the prefix is long.
func sourceIn(p netip.Prefix) match      { return in(p, versionOf(p).source) }
func destinationIn(p netip.Prefix) match { return in(p, versionOf(p).destination) }

func versionOf(p netip.Prefix) addresses {
	if p.Addr().Is4() {
		return ipv4
	}
	return ipv6
}

func in(p netip.Prefix, offset uint32) match {
	return compare(network(firstRegister, offset, versionOf(p).length), expr.CmpOpEq, p)
}

// compare compares the address that load loads into the first register.
func compare(load expr.Any, op expr.CmpOp, p netip.Prefix) match {
	addr := p.Masked().Addr().AsSlice()
	length := uint32(len(addr))
	return match{
		load,
		&expr.Bitwise{
			SourceRegister: firstRegister, DestRegister: firstRegister, Len: length,
			Mask: net.CIDRMask(p.Bits(), len(addr)*8), Xor: make([]byte, length),
		},
		&expr.Cmp{Op: op, Register: firstRegister, Data: addr},
	}
}

// network loads bytes of the network header.
func network(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

// transport loads bytes of the transport header, also behind extension headers
// of IPv6.
func transport(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

// ethernet loads bytes of the Ethernet header.
func ethernet(register, offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: length}
}

// equal compares what load loads into the first register.
func equal(load expr.Any, value []byte) match {
	return match{load, &expr.Cmp{Op: expr.CmpOpEq, Register: firstRegister, Data: value}}
}

// port loads the name of the interface that a packet came in by.
var port = match{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: firstRegister}}

// etherType compares the protocol of a frame, without its VLAN tag.
func etherType(protocol uint16) match {
	return equal(&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: firstRegister}, binary.BigEndian.AppendUint16(nil, protocol))
}

// lookUp goes where a map leads to from what was loaded.
func lookUp(s set) match {
	return match{&expr.Lookup{SourceRegister: firstRegister, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: s.name}}
}

// notIn matches if a set does not have what was loaded.
func notIn(s set) match {
	return match{&expr.Lookup{SourceRegister: firstRegister, SetName: s.name, Invert: true}}
}

func verdict(kind expr.VerdictKind) match { return match{&expr.Verdict{Kind: kind}} }
