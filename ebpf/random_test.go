package ebpf

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

var (
	packets = flag.Int("packets", 20_000, "how many random packets are tried")
	seed    = flag.Uint64("seed", 1, "seed of the random packets")
)

// TestRandomPackets has packets of all kinds with bytes changed, cut short, or of
// nothing but random bytes. Whatever they are, a program ends in one outcome, leaves
// alone what it passes on, and changes nothing but what a translation changes.
func TestRandomPackets(t *testing.T) {
	n := newNode(t)
	r := rand.New(rand.NewPCG(*seed, 0))
	kinds := n.kinds()
	before := n.outcomes()
	programs := []*ebpf.Program{n.PacketIn, n.PacketPortIn, n.PacketOut}
	err := n.ns.Do(func() error {
		out := make([]byte, 4096)
		for i := range *packets {
			in := mutated(r, kinds[r.IntN(len(kinds))])
			opts := &ebpf.RunOptions{Data: in, DataOut: out, Context: skb{Ifindex: uint32(n.links["pod"].Index)}}
			action, err := programs[r.IntN(len(programs))].Run(opts)
			if err != nil {
				return fmt.Errorf("packet %d: %w", i, err)
			}
			if why := wrong(in, opts.DataOut, int32(action)); why != "" {
				t.Errorf("seed %d, packet %d: action %d: %s\n in % x\nout % x", *seed, i, int32(action), why, in, opts.DataOut)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	total := uint64(0)
	for i, now := range n.outcomes() {
		if now != before[i] {
			t.Logf("%6d of outcome %d", now-before[i], i)
		}
		total += now - before[i]
	}
	if total != uint64(*packets) {
		t.Errorf("%d outcomes of %d packets", total, *packets)
	}
}

// kinds are packets that have to do with Services in one way or another.
func (n *node) kinds() [][]byte {
	n.Helper()
	var all [][]byte
	for _, f := range families {
		for _, protocol := range protocols {
			w := n.newFlow(f, protocol)
			n.service(f.pool(30), port(f.vip, 90), protocol, Path{Verdict: Reject}, 0)
			n.service(f.pool(31), port(f.vip, 91), protocol, Path{Verdict: Forward, Masquerade: 1}, 0, port(f.backend, 8080), port(f.client, 8080))
			refused, masqueraded, options := w.first, w.first, w.first
			refused.dst, masqueraded.dst = port(f.vip, 90), port(f.vip, 91)
			if f.vip.Is4() {
				options.head = []byte{1, 1, 1, 0}
			} else {
				options.next = unix.IPPROTO_HOPOPTS
				options.head = []byte{protocol, 0, 1, 4, 0, 0, 0, 0}
			}
			long := w.first
			long.payload = append(long.payload, make([]byte, 60)...)
			fragments := long.fragments(9)
			failed := wire{protocol: unix.IPPROTO_ICMP, icmp: [2]byte{3, 4}, src: port(f.outside, 0), dst: w.forwarded.src}
			if f.vip.Is6() {
				failed.protocol, failed.icmp = unix.IPPROTO_ICMPV6, [2]byte{2, 0}
			}
			failed.payload = append([]byte{0, 0, 5, 0}, w.forwarded.packet()...)
			failed = n.from("pod", failed)
			for _, w := range []wire{w.first, w.reply, refused, masqueraded, options, long, fragments[0], fragments[1], failed} {
				all = append(all, w.frame())
			}
		}
	}
	return all
}

// mutated is a packet with some bytes changed, or cut. The link's header stays.
func mutated(r *rand.Rand, frame []byte) []byte {
	b := bytes.Clone(frame)
	switch r.IntN(8) {
	case 0: // as it is
	case 1:
		least := etherLen + 40
		b = b[:least+r.IntN(max(len(b)-least, 1))]
	case 2:
		for i := etherLen; i < len(b); i++ {
			b[i] = byte(r.Uint32())
		}
	default:
		for range 1 + r.IntN(3) {
			b[etherLen+r.IntN(len(b)-etherLen)] = byte(r.Uint32())
		}
	}
	return b
}

// wrong says what is wrong with what became of a packet, if anything is.
func wrong(in, out []byte, action int32) string {
	switch action {
	case actionGoesOn, actionRedirect:
	case actionDrop:
		return ""
	default:
		return "no such action"
	}
	if bytes.Equal(in, out) {
		return ""
	}
	a, b := dissect(in), dissect(out)
	if a.src == b.dst && a.dst == b.src {
		return wrongAnswer(a, b)
	}
	if len(in) != len(out) {
		return "it has another length"
	}
	if a.l4 != b.l4 || a.protocol != b.protocol {
		return "its headers are others"
	}
	if a.head != b.head {
		return fmt.Sprintf("the IP header summed up to %#x, and does to %#x", a.head, b.head)
	}
	if a.rest != b.rest {
		return fmt.Sprintf("the transport checksum was off by %#x, and is by %#x", a.rest, b.rest)
	}
	if !a.icmp && !bytes.Equal(a.payload, b.payload) {
		return "its payload is another"
	}
	return ""
}

// wrongAnswer looks at an answer: its checksums must be right, but for that of an IP
// header that is still the packet's.
func wrongAnswer(in, out dissected) string {
	if (out.head != 0 && out.head != in.head) || out.rest != 0 {
		return fmt.Sprintf("the checksums of the answer are off by %#x and %#x", out.head, out.rest)
	}
	return ""
}

// dissected is what of a packet stays the same when it is translated.
type dissected struct {
	src, dst string
	l4       int
	protocol byte
	icmp     bool
	head     uint32 // by how much the IP header's checksum is wrong
	rest     uint32 // by how much the transport's is
	payload  []byte
}

func dissect(frame []byte) dissected {
	d := dissected{}
	ip := frame[etherLen:]
	var addrs []byte
	var later bool
	var total int
	if ip[0]>>4 == 4 {
		d.l4, d.protocol, addrs = int(ip[0]&15)*4, ip[9], ip[12:20]
		d.head = uint32(checksum(0, ip[:max(d.l4, 20)])) % 0xffff
		later = binary.BigEndian.Uint16(ip[6:])&0x1fff != 0
		total = int(binary.BigEndian.Uint16(ip[2:]))
	} else {
		d.l4, d.protocol, addrs = 40, ip[6], ip[8:40]
		total = 40 + int(binary.BigEndian.Uint16(ip[4:]))
		for range 6 {
			switch d.protocol {
			case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
				d.protocol, d.l4 = ip[d.l4], d.l4+8*(1+int(ip[d.l4+1]))
			case unix.IPPROTO_AH:
				d.protocol, d.l4 = ip[d.l4], d.l4+4*(2+int(ip[d.l4+1]))
			case unix.IPPROTO_FRAGMENT:
				later = later || binary.BigEndian.Uint16(ip[d.l4+2:])>>3 != 0
				d.protocol, d.l4 = ip[d.l4], d.l4+8
			}
		}
	}
	half := len(addrs) / 2
	d.src, d.dst = string(addrs[:half]), string(addrs[half:])
	if d.l4 > total || total > len(ip) {
		return d
	}
	segment := ip[d.l4:total]
	if later {
		d.payload = segment
		return d
	}
	d.sums(segment, addrs, ip[0]>>4 == 4)
	return d
}

// sums looks at the transport checksum, if there is one.
func (d *dissected) sums(segment, addrs []byte, ipv4 bool) {
	pseudo := sum16(uint32(len(segment))+uint32(d.protocol), addrs)
	switch {
	case d.protocol == unix.IPPROTO_TCP && len(segment) >= 20:
		d.rest = uint32(checksum(pseudo, segment)) % 0xffff
		d.payload = append(bytes.Clone(segment[4:16]), segment[18:]...)
	case d.protocol == unix.IPPROTO_UDP && len(segment) >= 8:
		d.payload = segment[8:]
		if binary.BigEndian.Uint16(segment[6:]) != 0 {
			d.rest = uint32(checksum(pseudo, segment)) % 0xffff
		}
	case d.protocol == unix.IPPROTO_SCTP && len(segment) >= 16:
		d.payload = segment[12:]
		if had := binary.LittleEndian.Uint32(segment[8:]); had != 0 {
			zeroed := bytes.Clone(segment)
			clear(zeroed[8:12])
			d.rest = had ^ crc32.Checksum(zeroed, castagnoli)
		}
	case d.protocol == unix.IPPROTO_ICMP && ipv4:
		d.icmp = true
		d.rest = uint32(checksum(0, segment)) % 0xffff
	case d.protocol == unix.IPPROTO_ICMPV6 && !ipv4:
		d.icmp = true
		d.rest = uint32(checksum(pseudo, segment)) % 0xffff
	}
}
