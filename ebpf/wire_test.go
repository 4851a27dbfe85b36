package ebpf

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"golang.org/x/sys/unix"
)

// A wire is a packet as the standards say that it must be: what programs send is
// compared with one, byte by byte. It shares nothing with them.
type wire struct {
	src, dst  netip.AddrPort
	protocol  uint8
	hops      uint8  // 0: 64
	head      []byte // IPv4 options, or IPv6 extension headers with next at its place
	next      uint8  // IPv6: the first of the extension headers
	id        uint32
	offset    int // of a fragment, in bytes
	more, df  bool
	flags     byte // TCP
	seq, ack  uint32
	window    uint16
	tag       uint32 // SCTP
	payload   []byte // behind the transport header; of ICMP, behind the checksum
	icmp      [2]byte
	unsummed  bool   // UDP over IPv4, SCTP: no checksum
	whole     []byte // of a later fragment: its bytes
	fragment  []byte // of the first one: that much of its transport packet
	macs      [2][6]byte
	swapped   bool
	transport []byte // given as it is
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum16(sum uint32, b []byte) uint32 {
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return sum
}

func checksum(sum uint32, b []byte) uint16 { return ^uint16(sum16(sum, b)) }

func (w wire) pseudo(length int) uint32 {
	b := append(w.src.Addr().AsSlice(), w.dst.Addr().AsSlice()...)
	return sum16(uint32(length)+uint32(w.protocol), b)
}

func (w wire) ports() []byte {
	b := binary.BigEndian.AppendUint16(nil, w.src.Port())
	return binary.BigEndian.AppendUint16(b, w.dst.Port())
}

// segment is the transport header and what is behind it.
func (w wire) segment() []byte {
	if w.transport != nil {
		return w.transport
	}
	b := w.ports()
	switch w.protocol {
	case unix.IPPROTO_TCP:
		b = binary.BigEndian.AppendUint32(b, w.seq)
		b = binary.BigEndian.AppendUint32(b, w.ack)
		b = append(b, 5<<4, w.flags)
		b = binary.BigEndian.AppendUint16(b, w.window)
		b = append(b, 0, 0, 0, 0)
		b = append(b, w.payload...)
		binary.BigEndian.PutUint16(b[16:], checksum(w.pseudo(len(b)), b))
	case unix.IPPROTO_UDP:
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(w.payload)))
		b = append(b, 0, 0)
		b = append(b, w.payload...)
		if !w.unsummed {
			sum := checksum(w.pseudo(len(b)), b)
			if sum == 0 {
				sum = 0xffff
			}
			binary.BigEndian.PutUint16(b[6:], sum)
		}
	case unix.IPPROTO_SCTP:
		b = binary.BigEndian.AppendUint32(b, w.tag)
		b = append(b, 0, 0, 0, 0)
		b = append(b, w.payload...)
		if !w.unsummed {
			binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
		}
	case unix.IPPROTO_ICMP:
		b = append([]byte{w.icmp[0], w.icmp[1], 0, 0}, w.payload...)
		binary.BigEndian.PutUint16(b[2:], checksum(0, b))
	case unix.IPPROTO_ICMPV6:
		b = append([]byte{w.icmp[0], w.icmp[1], 0, 0}, w.payload...)
		binary.BigEndian.PutUint16(b[2:], checksum(w.pseudo(len(b)), b))
	}
	return b
}

// packet is the IP packet.
func (w wire) packet() []byte {
	if w.hops == 0 {
		w.hops = 64
	}
	body := w.segment()
	switch {
	case w.whole != nil:
		body = w.whole
	case w.fragment != nil:
		body = w.fragment
	}
	if w.src.Addr().Is4() {
		return w.packet4(body)
	}
	next := w.protocol
	if w.head != nil {
		next = w.next
	}
	b := []byte{6 << 4, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(w.head)+len(body)))
	b = append(b, next, w.hops)
	b = append(b, w.src.Addr().AsSlice()...)
	b = append(b, w.dst.Addr().AsSlice()...)
	return append(append(b, w.head...), body...)
}

func (w wire) packet4(body []byte) []byte {
	fragment := uint16(w.offset / 8)
	if w.more {
		fragment |= 0x2000
	}
	if w.df {
		fragment |= 0x4000
	}
	b := []byte{4<<4 | byte(5+len(w.head)/4), 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(w.head)+len(body)))
	b = binary.BigEndian.AppendUint16(b, uint16(w.id))
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, w.hops, w.protocol, 0, 0)
	b = append(b, w.src.Addr().AsSlice()...)
	b = append(b, w.dst.Addr().AsSlice()...)
	b = append(b, w.head...)
	binary.BigEndian.PutUint16(b[10:], checksum(0, b))
	return append(b, body...)
}

// frame is the packet as a link carries it.
func (w wire) frame() []byte {
	to, from := w.macs[0], w.macs[1]
	if w.swapped {
		to, from = from, to
	}
	b := append(append([]byte(nil), to[:]...), from[:]...)
	if w.src.Addr().Is4() {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IP)
	} else {
		b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	}
	return append(b, w.packet()...)
}
