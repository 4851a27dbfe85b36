package sctp

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sealed is a packet from port 1 to port 2 with these chunks.
func sealed(tag byte, chunks ...[]byte) packet {
	p := packet{0, 0, 0, 0, 0, 0, 0, tag, 0, 0, 0, 0}
	for _, c := range chunks {
		p = append(p, c...)
	}
	p.seal(1, 2)
	return p
}

// RFC 9260 section 8.4, row by row.
func TestOutOfTheBlue(t *testing.T) {
	init := []byte{chunkInit, 0, 0, 20, 0, 0, 0, 77, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 1}
	data := []byte{chunkData, 3, 0, 17, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 'x', 0, 0, 0}
	bare := func(kind byte) []byte { return []byte{kind, 0, 0, 4} }
	for _, row := range []struct {
		name string
		got  packet
		want []byte // tag, chunk type, chunk flags; nil for silence
	}{
		{"INIT", sealed(0, init), []byte{77, chunkAbort, 0}},
		{"DATA", sealed(5, data), []byte{5, chunkAbort, flagReflected}},
		{"SHUTDOWN ACK", sealed(5, bare(chunkShutdownAck)), []byte{5, chunkShutdownComplete, flagReflected}},
		{"ABORT", sealed(5, bare(chunkAbort)), nil},
		{"ABORT after DATA", sealed(5, data, bare(chunkAbort)), nil},
		{"SHUTDOWN COMPLETE", sealed(5, bare(chunkShutdownComplete)), nil},
		{"COOKIE ACK", sealed(5, bare(chunkCookieAck)), nil},
		{"ERROR", sealed(5, bare(chunkError)), nil},
		{"no chunk", sealed(5), []byte{5, chunkAbort, flagReflected}},
	} {
		t.Run(row.name, func(t *testing.T) {
			var want packet
			if row.want != nil {
				want = packet{0, 0, 0, 0, 0, 0, 0, row.want[0], 0, 0, 0, 0, row.want[1], row.want[2], 0, 4}
				want.seal(2, 1)
			}
			if diff := cmp.Diff(want, row.got.outOfTheBlue()); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

func TestValid(t *testing.T) {
	good := sealed(5, []byte{chunkCookieAck, 0, 0, 4})
	if !good.valid() {
		t.Error("a sealed packet is not valid")
	}
	for i := range good {
		bad := append(packet(nil), good...)
		bad[i] ^= 1
		if bad.valid() {
			t.Errorf("a packet with byte %d changed is valid", i)
		}
	}
	if good[:headerLen-1].valid() {
		t.Error("a packet that is cut off is valid")
	}
}

// Whatever comes from the network, nothing breaks, and what is answered is valid.
func FuzzPacket(f *testing.F) {
	f.Add([]byte(sealed(0, []byte{chunkInit, 0, 0, 8, 0, 0, 0, 7})))
	f.Add([]byte(sealed(0, []byte{chunkInit, 0, 0, 4})))
	f.Add([]byte(sealed(9, []byte{chunkData, 0, 0, 0})))
	f.Add([]byte(sealed(9, []byte{chunkData, 0, 0, 5, 1})))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := packet(b)
		if len(p) < headerLen {
			return
		}
		total := 0
		for c := range p.chunks() {
			total += len(c)
		}
		if total > len(p)-headerLen {
			t.Errorf("%d bytes of chunks in a packet of %d", total, len(p))
		}
		if out := p.outOfTheBlue(); out != nil && !out.valid() {
			t.Errorf("answer %x is not valid", out)
		}
	})
}
