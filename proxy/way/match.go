package way

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// matching executes the expressions of one rule of nftables as the kernel does, as far
// as the packet is known. What it does not know may be either way.
type matching struct {
	*follower
	registers map[uint32]value
	failed    bool   // the rule does not concern the packet
	unknown   string // what would have to be known to say so

	says        expr.Verdict
	gives       bool         // it gives another source
	source      netip.Addr   // which, if it says so
	destination netip.Prefix // to which, it says, the packet goes
}

// value is what a register holds.
type value struct {
	data []byte
	// destination says that it is the packet's, of which the first bits count.
	destination bool
	bits        int
}

// step executes an expression.
func (m *matching) step(e expr.Any) error {
	switch e := e.(type) {
	case *expr.Payload:
		m.payload(e)
	case *expr.Meta:
		m.meta(e)
	case *expr.Bitwise:
		m.bitwise(e)
	case *expr.Immediate:
		m.registers[e.Register] = value{data: e.Data}
	case *expr.Cmp:
		m.compare(e)
	case *expr.Lookup:
		return m.lookup(e)
	case *expr.Verdict:
		m.says = *e
	case *expr.Match:
		if e.Name != "comment" {
			m.lacks(e.Name)
		}
	case *expr.Target: // of iptables-nft
		m.gives = e.Name == "MASQUERADE" || e.Name == "SNAT" || e.Name == "NETMAP"
	case *expr.Masq:
		m.gives = true
	case *expr.NAT:
		m.gives = e.Type == expr.NATTypeSourceNAT
		m.source, _ = netip.AddrFromSlice(m.registers[e.RegAddrMin].data) // or one that is not known
	case *expr.Ct, *expr.Fib, *expr.Limit, *expr.Connlimit, *expr.Quota, *expr.Exthdr, *expr.Range, *expr.Numgen, *expr.Hash:
		m.lacks(strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", e), "*expr.")))
	}
	return nil
}

func (m *matching) lacks(what string) {
	if m.unknown == "" {
		m.unknown = what
	}
}

// payload reads a part of a header, if it is known.
func (m *matching) payload(e *expr.Payload) {
	delete(m.registers, e.DestRegister)
	from, to := e.Offset, e.Offset+e.Len
	switch {
	case e.Base == expr.PayloadBaseNetworkHeader && m.knows(from, to):
		at := m.follower.destination()
		m.registers[e.DestRegister] = value{m.ip[from:to], from == at.from && to <= at.to, int(e.Len) * 8}
	case e.Base == expr.PayloadBaseTransportHeader && from == 2 && to == 4 && m.Dst.Port() != 0:
		m.registers[e.DestRegister] = value{data: m.transport[from:to]}
	}
}

// meta reads what the kernel knows of a packet besides its headers.
func (m *matching) meta(e *expr.Meta) {
	if e.SourceRegister {
		return // sets, and does not read
	}
	name := func(device string) value {
		return value{data: append([]byte(device), make([]byte, unix.IFNAMSIZ-len(device))...)}
	}
	delete(m.registers, e.Register)
	switch e.Key {
	case expr.MetaKeyNFPROTO:
		m.registers[e.Register] = value{data: []byte{m.family()}}
	case expr.MetaKeyL4PROTO:
		if m.Protocol != 0 {
			m.registers[e.Register] = value{data: []byte{m.Protocol}}
		}
	case expr.MetaKeyMARK:
		m.registers[e.Register] = value{data: make([]byte, 4)}
	case expr.MetaKeyOIFNAME:
		m.registers[e.Register] = name(m.out)
	case expr.MetaKeyIIFNAME:
		m.registers[e.Register] = name(m.in)
	case expr.MetaKeyOIF:
		m.registers[e.Register] = value{data: binary.NativeEndian.AppendUint32(nil, uint32(deviceIndex(m.out)))}
	case expr.MetaKeyIIF:
		m.registers[e.Register] = value{data: binary.NativeEndian.AppendUint32(nil, uint32(deviceIndex(m.in)))}
	}
}

// bitwise masks a register.
func (m *matching) bitwise(e *expr.Bitwise) {
	v, ok := m.registers[e.SourceRegister]
	delete(m.registers, e.DestRegister)
	if !ok || len(e.Mask) != len(v.data) || len(e.Xor) != len(v.data) {
		return
	}
	masked := value{destination: v.destination}
	for i := range v.data {
		masked.data = append(masked.data, v.data[i]&e.Mask[i]^e.Xor[i])
		masked.bits += bits.OnesCount8(e.Mask[i])
	}
	m.registers[e.DestRegister] = masked
}

// take is what a register holds, once: who has read it may find there what an
// expression has put that we do not know.
func (m *matching) take(register uint32, what string) (value, bool) {
	v, ok := m.registers[register]
	if !ok {
		m.lacks(what)
	}
	delete(m.registers, register)
	return v, ok
}

func (m *matching) compare(e *expr.Cmp) {
	v, ok := m.take(e.Register, "what is not known before")
	if !ok {
		return
	}
	if len(e.Data) > len(v.data) {
		m.lacks("several things at once")
		return
	}
	order := bytes.Compare(v.data[:len(e.Data)], e.Data)
	holds := map[expr.CmpOp]bool{
		expr.CmpOpEq: order == 0, expr.CmpOpNeq: order != 0, expr.CmpOpLt: order < 0,
		expr.CmpOpLte: order <= 0, expr.CmpOpGt: order > 0, expr.CmpOpGte: order >= 0,
	}[e.Op]
	m.failed = !holds
	if e.Op != expr.CmpOpEq && e.Op != expr.CmpOpNeq {
		m.registers[e.Register] = v // the other end of a range
	}
	if e.Op == expr.CmpOpEq {
		m.goesTo(v)
	}
}

// goesTo notes that the rule speaks of the destination.
func (m *matching) goesTo(v value) {
	if !v.destination {
		return
	}
	if prefix, err := m.Dst.Addr().Prefix(v.bits); err == nil {
		m.destination = prefix
	}
}

// lookup looks a register up in a set, or in a map of verdicts.
func (m *matching) lookup(e *expr.Lookup) error {
	v, ok := m.take(e.SourceRegister, "what is not known before")
	if !ok {
		return nil
	}
	set, err := m.set(m.table, e.SetName)
	if err != nil {
		return err
	}
	if set.KeyType.Bytes != uint32(len(v.data)) && set.KeyType.Bytes != 0 {
		m.lacks("several things at once")
		return nil
	}
	found := set.find(v.data)
	if m.failed = (found != nil) == e.Invert; m.failed {
		return nil
	}
	if !e.Invert {
		m.goesTo(v)
	}
	if e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT {
		m.says, err = verdictOf(found)
	}
	return err
}
