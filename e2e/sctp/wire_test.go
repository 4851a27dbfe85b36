package sctp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// These tests look at the packets from outside, with a checksum and a parser of
// their own, so that a mistake of the package does not hide itself.

// wirePacket is what the capture saw of one SCTP packet.
type wirePacket struct {
	from, to netip.AddrPort
	tag      uint32
	initiate uint32 // the tag that an INIT or INIT ACK asks for
	chunks   []string
	intact   bool // the checksum is right
}

var chunkNames = map[byte]string{
	0: "DATA", 1: "INIT", 2: "INIT ACK", 3: "SACK", 6: "ABORT", 7: "SHUTDOWN",
	8: "SHUTDOWN ACK", 10: "COOKIE ECHO", 11: "COOKIE ACK", 14: "SHUTDOWN COMPLETE",
}

// capture taps every packet of a namespace from now on.
func capture(t *testing.T, ns *netns.NS) *os.File {
	t.Helper()
	var tap *os.File
	err := ns.Do(func() error {
		everything := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, everything)
		tap = os.NewFile(uintptr(max(fd, 0)), "tap")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tap.Close() })
	return tap
}

// readUntil collects the SCTP packets up to the first with this chunk.
func readUntil(t *testing.T, tap *os.File, last string) []wirePacket {
	t.Helper()
	_ = tap.SetReadDeadline(time.Now().Add(10 * time.Second))
	var out []wirePacket
	buffer := make([]byte, 1<<16)
	for {
		n, err := tap.Read(buffer)
		if err != nil {
			t.Fatalf("read capture: %v; so far %v", err, out)
		}
		if p, ok := parseIP(buffer[:n]); ok {
			out = append(out, p)
			if slices.Contains(p.chunks, last) {
				return out
			}
		}
	}
}

func parseIP(b []byte) (wirePacket, bool) {
	switch {
	case b[0]>>4 == 4 && b[9] == 132:
		return parseSCTP(netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:])), b[int(b[0]&15)*4:]), true
	case b[0]>>4 == 6 && b[6] == 132:
		return parseSCTP(netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:])), b[40:]), true
	}
	return wirePacket{}, false
}

func parseSCTP(from, to netip.Addr, b []byte) wirePacket {
	zeroed := slices.Concat(b[:8], make([]byte, 4), b[12:])
	p := wirePacket{
		from:   netip.AddrPortFrom(from, uint16(b[0])<<8|uint16(b[1])),
		to:     netip.AddrPortFrom(to, uint16(b[2])<<8|uint16(b[3])),
		tag:    binary.BigEndian.Uint32(b[4:]),
		intact: crc32c(zeroed) == binary.LittleEndian.Uint32(b[8:]),
	}
	for i := 12; i < len(b); {
		p.chunks = append(p.chunks, chunkNames[b[i]])
		i += (int(b[i+2])<<8 | int(b[i+3]) + 3) &^ 3
	}
	if p.chunks[0] == "INIT" || p.chunks[0] == "INIT ACK" {
		p.initiate = binary.BigEndian.Uint32(b[16:])
	}
	return p
}

// crc32c is the definition of RFC 9260 appendix A, bit by bit.
func crc32c(b []byte) uint32 {
	crc := ^uint32(0)
	for _, octet := range b {
		crc ^= uint32(octet)
		for range 8 {
			crc = crc>>1 ^ 0x82f63b78*(crc&1)
		}
	}
	return ^crc
}

func TestCRC32c(t *testing.T) {
	// The check value of CRC-32C in every catalogue.
	if got := crc32c([]byte("123456789")); got != 0xe3069283 {
		t.Fatalf("crc32c = %#x", got)
	}
}

func TestAssociationOnTheWire(t *testing.T) {
	needUserSpace(t)
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			tap := capture(t, l.server)
			c, s := pair(t, l, family.server)
			if _, err := c.Write([]byte("ask")); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Read(make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.Close(), s.Close()); err != nil {
				t.Fatal(err)
			}
			packets := readUntil(t, tap, "SHUTDOWN COMPLETE")

			client, server := portOf(c.LocalAddr()), portOf(s.LocalAddr())
			asked := map[netip.AddrPort]uint32{} // end → the tag that it asked for
			var dialogue []string
			for _, p := range packets {
				want := wirePacket{from: client, to: server, initiate: p.initiate, chunks: p.chunks, intact: true}
				direction := "→"
				if p.from == server {
					want.from, want.to = server, client
					direction = "←"
				}
				want.tag = asked[want.to]
				if diff := cmp.Diff(want, p, comparePackets); diff != "" {
					t.Errorf("packet (-want +got):\n%s", diff)
				}
				if p.initiate != 0 {
					asked[p.from] = p.initiate
				}
				dialogue = append(dialogue, fmt.Sprint(direction, p.chunks))
			}
			want := []string{
				"→[INIT]", "←[INIT ACK]", "→[COOKIE ECHO]", "←[COOKIE ACK]",
				"→[DATA]", "←[SACK]",
				"→[SHUTDOWN]", "←[SHUTDOWN ACK]", "→[SHUTDOWN COMPLETE]",
			}
			if diff := cmp.Diff(want, dialogue); diff != "" {
				t.Errorf("dialogue (-want +got):\n%s", diff)
			}
		})
	}
}

var comparePackets = cmp.Options{
	cmp.AllowUnexported(wirePacket{}),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// A port without a listener: one INIT, one ABORT that carries the tag of the INIT.
func TestAbortOnTheWire(t *testing.T) {
	needUserSpace(t) // the kernel leaves the checksum to the link, here to a veth that needs none
	for _, family := range families {
		t.Run(family.name, func(t *testing.T) {
			l := newLAN(t)
			listen(t, l.server, family.server, 10)
			tap := capture(t, l.server)
			_, err := dial(t.Context(), l.client, netip.AddrPortFrom(family.server, 9))
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatalf("dial returned %v", err)
			}
			packets := readUntil(t, tap, "ABORT")
			if len(packets) != 2 {
				t.Fatalf("captured %v", packets)
			}
			init, got := packets[0], packets[1]
			want := wirePacket{from: init.to, to: init.from, tag: init.initiate, chunks: []string{"ABORT"}, intact: true}
			if diff := cmp.Diff(want, got, comparePackets); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}
