package sctp

import (
	"encoding/binary"
	"hash/crc32"
	"iter"
)

// packet is one SCTP packet as it stands on the wire (RFC 9260 section 3):
//
//	 0        2             4                  8          12
//	┌────────┬─────────────┬──────────────────┬──────────┬────────┬────────┬─
//	│ source │ destination │ verification tag │  CRC32c  │ chunk  │ chunk  │ …
//	└────────┴─────────────┴──────────────────┴──────────┴────────┴────────┴─
type packet []byte

const headerLen = 12

// chunk is type (1 byte), flags (1), length without padding (2), value.
type chunk []byte

const chunkHeaderLen = 4

// Chunk types, RFC 9260 section 3.2.
const (
	chunkData             = 0
	chunkInit             = 1
	chunkInitAck          = 2
	chunkAbort            = 6
	chunkShutdown         = 7
	chunkShutdownAck      = 8
	chunkError            = 9
	chunkCookieEcho       = 10
	chunkCookieAck        = 11
	chunkShutdownComplete = 14
)

// Chunk flags.
const (
	flagEnd       = 0x01 // DATA: last fragment of a message
	flagSackNow   = 0x08 // DATA: the receiver must not delay its SACK (RFC 7053)
	flagReflected = 0x01 // ABORT, SHUTDOWN COMPLETE: the tag is the receiver's peer's
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (p packet) source() uint16      { return binary.BigEndian.Uint16(p[0:]) }
func (p packet) destination() uint16 { return binary.BigEndian.Uint16(p[2:]) }
func (p packet) tag() uint32         { return binary.BigEndian.Uint32(p[4:]) }

// sum is the CRC32c of the packet with its checksum field taken as zero.
func (p packet) sum() uint32 {
	sum := crc32.Update(0, castagnoli, p[:8])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, p[headerLen:])
}

// valid says that the header is whole and the checksum right. The checksum is
// the one field of SCTP that is sent with the lowest byte first.
func (p packet) valid() bool {
	return len(p) >= headerLen && p.sum() == binary.LittleEndian.Uint32(p[8:])
}

// seal gives the packet its ports and the checksum that belongs to them.
func (p packet) seal(source, destination uint16) {
	binary.BigEndian.PutUint16(p[0:], source)
	binary.BigEndian.PutUint16(p[2:], destination)
	binary.LittleEndian.PutUint32(p[8:], p.sum())
}

// chunks yields the chunks in their order and stops at the first broken one.
func (p packet) chunks() iter.Seq[chunk] {
	return func(yield func(chunk) bool) {
		for rest := p[headerLen:]; len(rest) >= chunkHeaderLen; {
			length := int(binary.BigEndian.Uint16(rest[2:]))
			if length < chunkHeaderLen || length > len(rest) {
				return
			}
			if !yield(chunk(rest[:length])) {
				return
			}
			padded := min((length+3)&^3, len(rest))
			rest = rest[padded:]
		}
	}
}

func (c chunk) kind() byte      { return c[0] }
func (c chunk) reflected() bool { return c[1]&flagReflected != 0 }

// initiateTag is the tag that the sender of an INIT or INIT ACK wants to see in
// every packet that it gets; zero, which RFC 9260 forbids, if it is cut off.
func (c chunk) initiateTag() uint32 {
	if len(c) < chunkHeaderLen+4 {
		return 0
	}
	return binary.BigEndian.Uint32(c[chunkHeaderLen:])
}

// init returns the INIT of a packet, which travels alone (RFC 9260 section 3.3.2).
func (p packet) init() (chunk, bool) {
	for c := range p.chunks() {
		return c, c.kind() == chunkInit && c.initiateTag() != 0
	}
	return nil, false
}

// outOfTheBlue is the answer to a packet that belongs to no association and no
// listener (RFC 9260 section 8.4), or nil where that is silence.
func (p packet) outOfTheBlue() packet {
	if init, ok := p.init(); ok {
		return p.answer(chunkAbort, 0, init.initiateTag())
	}
	for c := range p.chunks() {
		switch c.kind() {
		case chunkAbort, chunkShutdownComplete, chunkCookieAck, chunkError:
			return nil // an answer to these could be answered for ever
		case chunkShutdownAck:
			return p.answer(chunkShutdownComplete, flagReflected, p.tag())
		}
	}
	return p.answer(chunkAbort, flagReflected, p.tag())
}

// answer makes the packet of one bare chunk that goes back to the sender of p.
func (p packet) answer(kind, flags byte, tag uint32) packet {
	a := bare(kind, flags, tag)
	a.seal(p.destination(), p.source())
	return a
}

// bare makes a packet of one chunk without a value. It has no ports yet.
func bare(kind, flags byte, tag uint32) packet {
	p := make(packet, headerLen, headerLen+chunkHeaderLen)
	binary.BigEndian.PutUint32(p[4:], tag)
	return append(p, kind, flags, 0, chunkHeaderLen)
}
