package ebpf

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkPacket is the time of a program for one packet, without what the kernel
// does before and after. The kernel runs a program again and again on what it made
// of the packet: so the flow has rows that lead to and fro, each a full translation.
func BenchmarkPacket(b *testing.B) {
	n := newNode(b)
	for _, name := range []string{"ipv4", "ipv6"} {
		f := families[name]
		for _, word := range []string{"tcp", "udp", "sctp"} {
			w := first(protocols[word], port(f.client, 40000), port(f.vip, 80))
			later(&w)
			n.put(n.Begun, uint32(0), uint32(0))
			b.Run("no Service, no flow/"+name+"/"+word, func(b *testing.B) {
				w := w
				w.dst = port(f.far, 9)
				n.bench(b, w)
			})
			b.Run("hit/"+name+"/"+word, func(b *testing.B) {
				n.toAndFro(w, port(f.backend, 8080))
				n.bench(b, w)
			})
			b.Run("no Service/"+name+"/"+word, func(b *testing.B) {
				w.dst = port(f.far, 9)
				n.bench(b, w)
			})
		}
	}
}

// later makes the first packet of a flow one in its middle.
func later(w *wire) {
	w.flags = 0x10
	if w.protocol == unix.IPPROTO_SCTP {
		w.payload[0] = 0
	}
}

func (n *node) toAndFro(w wire, backend netip.AddrPort) {
	n.Helper()
	n.put(n.Begun, uint32(0), uint32(1))
	for i, dst := range []netip.AddrPort{w.dst, backend} {
		other := []netip.AddrPort{backend, w.dst}[i]
		n.service(uint32(20+i), dst, w.protocol, forward, 0, other)
		key := bpfFlowKey{Tuple: bpfTuple{Src: endpointOf(w.src), Dst: endpointOf(dst)}, Protocol: uint32(w.protocol)}
		n.put(n.Flows, key, bpfFlow{
			To:    bpfTuple{Src: endpointOf(w.src), Dst: endpointOf(other)},
			Stage: uint8(bpfStageSTAGE_OPEN),
			Seen:  ticksNow(n),
			Check: checkOf(key),
		})
	}
}

// ticksNow is the clock of struct flow.
func ticksNow(n *node) uint32 {
	n.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		n.Fatal(err)
	}
	return uint32(ts.Nano() >> 30)
}

func (n *node) bench(b *testing.B, w wire) {
	program := n.PacketOut // which takes no hops off
	if err := n.ns.Do(func() error {
		_, took, err := program.Benchmark(w.frame(), b.N, nil)
		b.ReportMetric(float64(took.Nanoseconds()), "ns/packet")
		return err
	}); err != nil {
		b.Fatal(err)
	}
}
