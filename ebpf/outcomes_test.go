package ebpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const etherLen = 14

// ipLen is the length of the IP header before extension headers.
func ipLen(a netip.Addr) int {
	if a.Is4() {
		return 20
	}
	return 40
}

// back is a packet that answers w and goes out by the same link.
func (w wire) back() wire {
	w.src, w.dst = w.dst, w.src
	w.swapped, w.df = true, true
	w.hops, w.id = 64, 0
	return w
}

// quoting is the ICMP error about a packet that got holds. The quote must be the
// packet's, but for the transport checksum, which got may choose: whether a device
// puts another one there or not, the error's own checksum must be right.
func (n *node) quoting(w wire, kind4, kind6 [2]byte, rest uint32, got []byte) wire {
	n.Helper()
	e := w.back()
	e.protocol, e.icmp = unix.IPPROTO_ICMP, kind4
	if w.src.Addr().Is6() {
		e.protocol, e.icmp = unix.IPPROTO_ICMPV6, kind6
		e.df = false
	}
	headers := ipLen(w.src.Addr()) + len(w.head)
	quote := w.packet()
	quote = quote[:min(len(quote), headers+64)]
	e.head = nil
	start := etherLen + ipLen(w.src.Addr()) + 8 + headers
	if field, ok := map[uint8]int{unix.IPPROTO_UDP: 6, unix.IPPROTO_TCP: 16}[w.protocol]; ok && len(got) > start+field+2 {
		transport := quote[headers:]
		copy(transport[field:], got[start+field:start+field+2])
		binary.BigEndian.PutUint32(append([]byte(nil), 0, 0, 0, 0), rest)
		by := bytes.Clone(transport)
		binary.BigEndian.PutUint16(by[field:], checksum(0, transport))
		if a, b := sum16(0, transport), sum16(0, by); a%0xffff != b%0xffff {
			n.Errorf("the quote sums up to %#x, and to %#x with a device's checksum", a, b)
		}
	}
	e.payload = append(binary.BigEndian.AppendUint32(nil, rest), quote...)
	return e
}

func tryRefused(n *node, f family, protocol uint8) {
	vip := port(f.vip, 90)
	n.service(2, vip, protocol, Path{Verdict: Reject}, 0)
	in := n.from("pod", first(protocol, port(f.client, 40000), vip))
	in.hops = 3 // the answer has more
	if protocol == unix.IPPROTO_TCP {
		in.payload = []byte("TCP Fast Open")
	}
	got := n.run(n.PacketIn, "pod", in.frame(), 0)
	want := in.back()
	switch protocol {
	case unix.IPPROTO_TCP:
		want.flags, want.seq, want.ack, want.payload = 0x14, 0, in.seq+1+uint32(len(in.payload)), nil
		want.window = binary.BigEndian.Uint16(got.frame[etherLen+ipLen(f.vip)+14:])
		n.forDevice(want, got.frame)
	case unix.IPPROTO_SCTP:
		want.tag, want.payload = 0xcafebabe, []byte{6, 0, 0, 4}
	case unix.IPPROTO_UDP:
		want = n.quoting(in, [2]byte{3, 3}, [2]byte{1, 4}, 0, got.frame)
	}
	n.expect("refused", got, actionRedirect, bpfOutcomePACKET_REFUSED, want)
	if protocol != unix.IPPROTO_UDP {
		in.protocol, in.more, in.fragment = protocol, true, in.segment()
		if f.vip.Is4() {
			n.expect("a fragment", n.run(n.PacketIn, "pod", in.frame(), 0), actionDrop, bpfOutcomePACKET_MUTE, in)
		}
	}
	if protocol == unix.IPPROTO_SCTP {
		in = n.from("pod", first(protocol, port(f.client, 40001), vip))
		in.unsummed = true
		want.dst, want.unsummed = in.src, true
		n.expect("for a device to sum up", n.run(n.PacketIn, "pod", in.frame(), 0), actionRedirect, bpfOutcomePACKET_REFUSED, want)
	}
}

// forDevice checks that a device which makes the checksum of a RST (of the sum of
// the pseudo header in its place) makes the one that is there.
func (n *node) forDevice(w wire, frame []byte) {
	n.Helper()
	tcp := bytes.Clone(frame[etherLen+ipLen(w.src.Addr()):])
	had := binary.BigEndian.Uint16(tcp[16:])
	if uint32(had)%0xffff != w.pseudo(20)%0xffff {
		n.Errorf("the checksum is %#x, the pseudo header %#x", had, w.pseudo(20))
	}
	if made := checksum(0, tcp); made%0xffff != had%0xffff {
		n.Errorf("a device makes the checksum %#x, there is %#x", made, had)
	}
}

func tryDropped(n *node, f family, protocol uint8) {
	n.service(2, port(f.vip, 90), protocol, Path{Verdict: Drop}, 0)
	in := n.from("pod", first(protocol, port(f.client, 40000), port(f.vip, 90)))
	n.expect("DROP", n.run(n.PacketIn, "pod", in.frame(), 0), actionDrop, bpfOutcomePACKET_DROPPED, in)

	n.service(3, port(f.vip, 91), protocol, forward, FrontendSources, port(f.backend, 8080))
	in.dst = port(f.vip, 91)
	n.expect("source ranges", n.run(n.PacketIn, "pod", in.frame(), 0), actionDrop, bpfOutcomePACKET_NOT_ADMITTED, in)
	ranges := SourceKey{Prefixlen: 32 + 128 - 8, Frontend: binary.NativeEndian.Uint32([]byte{0, 0, 0, 3}), Addr: addrRow(f.client)}
	n.put(n.Sources, ranges, uint32(1))
	n.expect("in a range", n.run(n.PacketIn, "pod", in.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, in.to(in.src, port(f.backend, 8080)))
	if err := n.Sources.Delete(ranges); err != nil {
		n.Fatal(err)
	}

	n.service(4, port(f.vip, 92), protocol, forward, 0)
	in.dst = port(f.vip, 92)
	n.expect("a pool of none", n.run(n.PacketIn, "pod", in.frame(), 0), actionDrop, bpfOutcomePACKET_LOST, in)
}

func tryAffinity(n *node, f family, protocol uint8) {
	backends := []netip.AddrPort{port(f.backend, 8080), port(f.other, 8080)}
	n.service(5, port(f.vip, 93), protocol, forward, 0, backends...)
	n.put(n.Pools, uint32(5), Pool{Now: Generation{Id: 10, Count: 2}, Affinity: 3600, Flags: PoolMembers})
	n.put(n.Turns, uint32(5), Turn{})
	for i, outcome := range []bpfOutcome{bpfOutcomePACKET_BEGUN, bpfOutcomePACKET_KEPT, bpfOutcomePACKET_KEPT} {
		in := n.from("pod", first(protocol, port(f.client, uint16(40000+i)), port(f.vip, 93)))
		if i == 0 {
			_ = n.Affinities.Delete(bpfAffinityKey{Sender: addrRow(f.client), Pool: 5})
		}
		n.expect("affinity", n.run(n.PacketIn, "pod", in.frame(), 0), actionRedirect, outcome, in.to(in.src, backends[0]))
	}
}

// masquerades reads the port that a masqueraded packet got.
func (n *node) masquerades(frame []byte, f family) uint16 {
	n.Helper()
	p := binary.BigEndian.Uint16(frame[etherLen+ipLen(f.vip):])
	if p < 1024 || p >= 30000 {
		n.Errorf("port %d is one of the node's own", p)
	}
	return p
}

func tryMasquerade(n *node, f family, protocol uint8) {
	anyAddr := map[bool]netip.Addr{true: netip.IPv4Unspecified(), false: netip.IPv6Unspecified()}[f.vip.Is4()]
	n.service(6, port(anyAddr, 30080), protocol, Path{Verdict: Forward, Masquerade: 1}, 0, port(f.backend, 8080))
	in := n.from("wan", first(protocol, port(f.outside, 40000), port(f.node, 30080)))
	got := n.run(n.PacketIn, "wan", in.frame(), 0)
	nat := port(f.node, n.masquerades(got.frame, f))
	n.expect("node port", got, actionRedirect, bpfOutcomePACKET_BEGUN, in.to(nat, port(f.backend, 8080)))
	back := n.from("pod", answer(in.to(nat, port(f.backend, 8080))))
	back.hops = 64
	n.expect("reply", n.run(n.PacketIn, "pod", back.frame(), 0), actionRedirect, bpfOutcomePACKET_REPLIED, back.to(in.dst, in.src))

	n.service(7, port(f.vip, 94), protocol, forward, 0, port(f.client, 8080))
	in = n.from("pod", first(protocol, port(f.client, 40000), port(f.vip, 94)))
	got = n.run(n.PacketIn, "pod", in.frame(), 0)
	n.expect("hairpin", got, actionRedirect, bpfOutcomePACKET_BEGUN, in.to(port(f.node, n.masquerades(got.frame, f)), port(f.client, 8080)))

	in = n.from("wan", first(protocol, port(f.outside, 40000), port(f.vip, 30080)))
	n.expect("no node port of another address", n.run(n.PacketIn, "wan", in.frame(), 0), actionGoesOn, bpfOutcomePACKET_PASSED, in)
}

// To an endpoint outside the cluster pods are masqueraded, and nobody else.
func tryLeaving(n *node, f family, protocol uint8) {
	n.service(14, port(f.vip, 60), protocol, forward, 0, port(f.far, 8080))
	n.put(n.Leaving, addrRow(f.far), uint32(1))
	defer func() {
		if err := n.Leaving.Delete(addrRow(f.far)); err != nil {
			n.Error(err)
		}
	}()
	in := n.from("pod", first(protocol, port(f.client, 40000), port(f.vip, 60)))
	got := n.run(n.PacketIn, "pod", in.frame(), 0)
	nat := port(f.node, n.masquerades(got.frame, f))
	n.expect("pod", got, actionRedirect, bpfOutcomePACKET_BEGUN, in.to(nat, port(f.far, 8080)))
	back := n.from("wan", answer(in.to(nat, port(f.far, 8080))))
	back.hops = 64
	n.expect("reply", n.run(n.PacketIn, "wan", back.frame(), 0), actionRedirect, bpfOutcomePACKET_REPLIED, back.to(in.dst, in.src))

	in = n.from("wan", first(protocol, port(f.outside, 40000), port(f.vip, 60)))
	n.expect("outside", n.run(n.PacketIn, "wan", in.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, in.to(in.src, port(f.far, 8080)))
}

// Of two flows to one backend from one address and port each has a port to itself.
func tryClash(n *node, f family, protocol uint8) {
	n.service(8, port(f.vip, 95), protocol, forward, 0, port(f.backend, 8080))
	n.service(9, port(f.vip, 96), protocol, forward, 0, port(f.backend, 8080))
	one := n.from("pod", first(protocol, port(f.client, 40000), port(f.vip, 95)))
	n.expect("one", n.run(n.PacketIn, "pod", one.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, one.to(one.src, port(f.backend, 8080)))
	two := n.from("pod", first(protocol, port(f.client, 40000), port(f.vip, 96)))
	got := n.run(n.PacketIn, "pod", two.frame(), 0)
	n.expect("two", got, actionRedirect, bpfOutcomePACKET_BEGUN, two.to(port(f.client, n.masquerades(got.frame, f)), port(f.backend, 8080)))
}

func tryNoPort(n *node, f family, protocol uint8) {
	n.service(10, port(f.vip, 97), protocol, Path{Verdict: Forward, Masquerade: 1}, 0, port(f.backend, 8080))
	key := masqueradeKey(0, f.vip.Is6())
	if err := n.MasqueradeAddrs.Delete(key); err != nil {
		n.Fatal(err)
	}
	in := n.from("pod", first(protocol, port(f.client, 40000), port(f.vip, 97)))
	n.expect("no address", n.run(n.PacketIn, "pod", in.frame(), 0), actionDrop, bpfOutcomePACKET_NO_PORT, in)
	n.put(n.MasqueradeAddrs, key, addrRow(f.node))
}

func tryWays(n *node, f family, protocol uint8) {
	n.service(11, port(f.vip, 98), protocol, forward, 0, port(f.far, 8080))
	in := n.from("pod", first(protocol, port(f.client, 40000), port(f.vip, 98)))
	in.df = true
	n.expect("fits", n.run(n.PacketIn, "pod", in.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, in.to(in.src, port(f.far, 8080)))
	big := in
	big.payload = append(bytes.Clone(in.payload), make([]byte, 1380)...)
	got := n.run(n.PacketIn, "pod", big.frame(), 0)
	n.expect("too big", got, actionRedirect, bpfOutcomePACKET_TOO_BIG, n.quoting(big, [2]byte{3, 4}, [2]byte{2, 0}, 1400, got.frame))
	last := in
	last.hops = 1
	got = n.run(n.PacketIn, "pod", last.frame(), 0)
	n.expect("last hop", got, actionRedirect, bpfOutcomePACKET_EXPIRED, n.quoting(last, [2]byte{11, 0}, [2]byte{3, 0}, 0, got.frame))

	n.service(12, port(f.vip, 99), protocol, forward, 0, port(f.nowhere, 8080))
	in.dst = port(f.vip, 99)
	got = n.run(n.PacketIn, "pod", in.frame(), 0)
	n.expect("nowhere", got, actionRedirect, bpfOutcomePACKET_UNREACHABLE, n.quoting(in, [2]byte{3, 1}, [2]byte{1, 0}, 0, got.frame))
}

func tryErrors(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	n.run(n.PacketIn, "pod", w.reply.frame(), 0)
	about := func(from netip.Addr, quoted wire) wire {
		e := wire{protocol: unix.IPPROTO_ICMP, icmp: [2]byte{3, 4}, src: port(from, 0), dst: quoted.src}
		if from.Is6() {
			e.protocol, e.icmp = unix.IPPROTO_ICMPV6, [2]byte{2, 0}
		}
		quote := quoted.packet()
		e.payload = append([]byte{0, 0, 5, 0}, quote[:min(len(quote), ipLen(from)+8)]...)
		return n.from("wan", e)
	}
	// The transport checksum in a quote of eight bytes is UDP's; it stays.
	keep := func(want, got wire) wire {
		if protocol == unix.IPPROTO_UDP {
			copy(want.payload[4+ipLen(f.vip)+6:], got.payload[4+ipLen(f.vip)+6:][:2])
		}
		want.hops = 63
		return want
	}
	forwards := about(f.outside, w.forwarded)
	toClient := about(f.outside, w.first)
	toClient.payload[4+map[bool]int{true: 8, false: 7}[f.vip.Is4()]] = 63 // hops of the packet that is quoted
	if f.vip.Is4() {
		sealed(toClient.payload[4:])
	}
	for _, flags := range []uint32{0, checksumComplete} {
		n.expect("from the way", n.run(n.PacketIn, "wan", forwards.frame(), flags), actionRedirect, bpfOutcomePACKET_ERROR, keep(toClient, forwards))
	}
	receiver := about(f.backend, w.forwarded)
	fromVIP := toClient
	fromVIP.src = port(f.vip, 0)
	n.expect("from the backend", n.run(n.PacketIn, "wan", receiver.frame(), 0), actionRedirect, bpfOutcomePACKET_ERROR, keep(fromVIP, receiver))

	replies := about(f.outside, w.replied)
	toBackend := about(f.outside, w.reply)
	toBackend.payload[4+map[bool]int{true: 8, false: 7}[f.vip.Is4()]] = 63
	if f.vip.Is4() {
		sealed(toBackend.payload[4:])
	}
	n.expect("about a reply", n.run(n.PacketIn, "wan", replies.frame(), 0), actionRedirect, bpfOutcomePACKET_ERROR, keep(toBackend, replies))

	replies.hops = 1
	n.expect("error without hops", n.run(n.PacketIn, "wan", replies.frame(), 0), actionDrop, bpfOutcomePACKET_MUTE, replies)
	stranger := about(f.outside, wire{protocol: protocol, src: port(f.client, 5), dst: port(f.outside, 6)})
	n.expect("about another", n.run(n.PacketIn, "wan", stranger.frame(), 0), actionGoesOn, bpfOutcomePACKET_PASSED, stranger)
}

// sealed gives an IPv4 header its checksum.
func sealed(ip []byte) {
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip[:20]))
}

// fragments of a packet, at some multiple of eight bytes.
func (w wire) fragments(id uint32) [2]wire {
	body := w.segment()
	const cut = 24
	one, two := w, w
	one.id, two.id = id, id
	one.more, two.offset = true, cut
	one.fragment, two.whole = body[:cut], body[cut:]
	if w.src.Addr().Is6() {
		one.next, two.next = unix.IPPROTO_FRAGMENT, unix.IPPROTO_FRAGMENT
		header := []byte{w.protocol, 0, 0, 1, 0, 0, 0, byte(id)}
		one.head = header
		two.head = []byte{w.protocol, 0, 0, cut, 0, 0, 0, byte(id)}
	}
	return [2]wire{one, two}
}

func tryFragments(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	w.first.payload = append(w.first.payload, make([]byte, 40)...)
	w.forwarded.payload = w.first.payload
	in, out := w.first.fragments(7), w.forwarded.fragments(7)
	if protocol == unix.IPPROTO_SCTP {
		n.expect("SCTP", n.run(n.PacketIn, "pod", in[0].frame(), 0), actionDrop, bpfOutcomePACKET_SCTP_FRAGMENT, in[0])
		return
	}
	n.expect("first", n.run(n.PacketIn, "pod", in[0].frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, out[0])
	for _, flags := range []uint32{0, checksumComplete} {
		n.expect("later", n.run(n.PacketIn, "pod", in[1].frame(), flags), actionRedirect, bpfOutcomePACKET_FORWARDED, out[1])
	}
	stray := w.first.fragments(8)[1]
	n.expect("of another", n.run(n.PacketIn, "pod", stray.frame(), 0), actionGoesOn, bpfOutcomePACKET_PASSED, stray)
}

func tryOptions(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	if f.vip.Is4() {
		w.first.head = []byte{0x94, 4, 0, 0, 1, 1, 1, 0} // router alert, no operation, end
	} else {
		w.first.next = unix.IPPROTO_HOPOPTS
		w.first.head = append([]byte{unix.IPPROTO_DSTOPTS, 0, 1, 4, 0, 0, 0, 0}, protocol, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	w.forwarded.head, w.forwarded.next = w.first.head, w.first.next
	n.expect("options", n.run(n.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, w.forwarded)
	n.service(2, port(f.vip, 90), protocol, Path{Verdict: Reject}, 0)
	w.first.dst = port(f.vip, 90)
	got := n.run(n.PacketIn, "pod", w.first.frame(), 0)
	want := w.first.back()
	switch protocol {
	case unix.IPPROTO_TCP:
		want.flags, want.seq, want.ack = 0x14, 0, w.first.seq+1
		want.window = binary.BigEndian.Uint16(got.frame[etherLen+ipLen(f.vip)+len(want.head)+14:])
	case unix.IPPROTO_SCTP:
		want.tag, want.payload = 0xcafebabe, []byte{6, 0, 0, 4}
	case unix.IPPROTO_UDP:
		want = n.quoting(w.first, [2]byte{3, 3}, [2]byte{1, 4}, 0, got.frame)
	}
	n.expect("refused with options", got, actionRedirect, bpfOutcomePACKET_REFUSED, want)
}

func tryUnsummed(n *node, f family, protocol uint8) {
	if protocol == unix.IPPROTO_TCP || (protocol == unix.IPPROTO_UDP && f.vip.Is6()) {
		n.Skip("has always a checksum")
	}
	w := n.newFlow(f, protocol)
	w.first.unsummed, w.forwarded.unsummed = true, true
	n.expect("no checksum", n.run(n.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, w.forwarded)
}

func tryMalformed(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	frame := w.first.frame()
	for length := etherLen + ipLen(f.vip); length < etherLen+ipLen(f.vip)+map[uint8]int{unix.IPPROTO_TCP: 20, unix.IPPROTO_UDP: 8, unix.IPPROTO_SCTP: 16}[protocol]; length++ {
		got := n.run(n.PacketIn, "pod", frame[:length], 0)
		n.seen[got.outcome] = true
		if got.action != actionGoesOn || got.outcome != bpfOutcomePACKET_MALFORMED || !bytes.Equal(got.frame, frame[:length]) {
			n.Errorf("%d bytes: action %d, outcome %d", length, got.action, got.outcome)
		}
	}
}

// stage is how far a flow is, by the row that its packet w has.
func (n *node) stage(w wire) bpfStage { return bpfStage(n.row(w).Stage) }

// tag is the verification tag that the row of a packet's direction has.
func (n *node) tag(w wire) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, n.row(w).Tag))
}

// row is the row of a packet's direction.
func (n *node) row(w wire) (row bpfFlow) {
	n.Helper()
	key := bpfFlowKey{Tuple: bpfTuple{Src: endpointOf(w.src), Dst: endpointOf(w.dst)}, Protocol: uint32(w.protocol)}
	if err := n.Flows.Lookup(key, &row); err != nil {
		n.Fatalf("look for the row of %v: %v", w, err)
	}
	return row
}

// age makes a flow look as if its last packet was long ago.
func (n *node) age(by time.Duration) {
	n.Helper()
	var key bpfFlowKey
	var row bpfFlow
	rows := n.Flows.Iterate()
	for rows.Next(&key, &row) {
		row.Seen -= uint32(by >> 30)
		if err := n.Flows.Update(key, row, ebpf.UpdateExist); err != nil {
			n.Fatal(err)
		}
	}
}

func tryStages(n *node, f family, protocol uint8) {
	type event struct {
		reply bool
		told  byte
		want  bpfStage
	}
	events := map[uint8][]event{
		unix.IPPROTO_TCP: {
			{false, 0x02, bpfStageSTAGE_OPENING}, {true, 0x12, bpfStageSTAGE_OPEN}, {false, 0x10, bpfStageSTAGE_OPEN},
			{false, 0x11, bpfStageSTAGE_ENDING}, {false, 0x11, bpfStageSTAGE_ENDING}, {true, 0x10, bpfStageSTAGE_ENDING},
			{true, 0x11, bpfStageSTAGE_ENDED}, {false, 0x10, bpfStageSTAGE_ENDED}, {false, 0x02, bpfStageSTAGE_OPENING},
			{true, 0x14, bpfStageSTAGE_BROKEN}, {false, 0x02, bpfStageSTAGE_OPENING}, {false, 0xff, bpfStageSTAGE_BROKEN},
		},
		unix.IPPROTO_UDP: {{false, 0, bpfStageSTAGE_OPENING}, {true, 0, bpfStageSTAGE_OPEN}, {false, 0, bpfStageSTAGE_OPEN}},
		unix.IPPROTO_SCTP: {
			{false, 1, bpfStageSTAGE_OPENING}, {true, 1, bpfStageSTAGE_OPENING}, {true, 2, bpfStageSTAGE_OPENING},
			{false, 10, bpfStageSTAGE_OPENING}, {true, 11, bpfStageSTAGE_OPEN}, {false, 4, bpfStageSTAGE_OPEN},
			{false, 1, bpfStageSTAGE_OPEN}, {true, 7, bpfStageSTAGE_ENDING}, {false, 8, bpfStageSTAGE_ENDING},
			{true, 14, bpfStageSTAGE_ENDED}, {false, 1, bpfStageSTAGE_OPENING}, {true, 6, bpfStageSTAGE_BROKEN},
		},
	}
	w := n.newFlow(f, protocol)
	for i, e := range events[protocol] {
		in := w.first
		if e.reply {
			in = w.reply
		}
		in.flags = e.told
		if protocol == unix.IPPROTO_SCTP {
			in.payload = append([]byte{e.told}, in.payload[1:]...)
		}
		if got := n.run(n.PacketIn, "pod", in.frame(), 0); got.action != actionRedirect {
			n.Errorf("packet %d: action %d, outcome %d", i, got.action, got.outcome)
		}
		for _, row := range []wire{w.first, w.reply} {
			if got := n.stage(row); got != e.want {
				n.Errorf("packet %d: stage %d, want %d", i, got, e.want)
			}
		}
	}
}

// Each row knows the verification tag of its direction, whatever comes in the other.
func tryTags(n *node, f family, protocol uint8) {
	if protocol != unix.IPPROTO_SCTP {
		return
	}
	w := n.newFlow(f, protocol)
	forward, reply := w.first, w.reply
	forward.payload, forward.tag = append([]byte{10}, w.first.payload[1:]...), 0x01020304
	reply.payload, reply.tag = append([]byte{2}, w.first.payload[1:]...), 0xcafebabe
	want := [2]uint32{}
	for i, in := range []wire{w.first, reply, forward, w.first, reply} {
		n.run(n.PacketIn, "pod", in.frame(), 0)
		switch i {
		case 1:
			want[1] = reply.tag
		case 2:
			want[0] = forward.tag
		}
		if got := [2]uint32{n.tag(w.first), n.tag(w.reply)}; got != want {
			n.Errorf("after packet %d: tags %#x, want %#x", i, got, want)
		}
	}
}

// A flow that is over, or whose backend serves no more, begins anew; its replies
// are nobody's.
func tryOver(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	n.age(2 * time.Minute)
	n.expect("reply", n.run(n.PacketIn, "pod", w.reply.frame(), 0), actionGoesOn, bpfOutcomePACKET_PASSED, w.reply)
	n.expect("anew", n.run(n.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, w.forwarded)

	other := port(f.other, 8080)
	n.put(n.Members, MemberKey{Generation: f.pool(1)*2 + 1, Backend: endpointOf(w.forwarded.dst)}, MemberServes)
	n.put(n.Members, MemberKey{Generation: f.pool(1)*2 + 1, Backend: endpointOf(other)}, MemberServes|MemberTurns)
	n.put(n.Backends, BackendKey{Generation: f.pool(1)*2 + 1}, Backend{Generation: f.pool(1)*2 + 1, Addr: addrRow(f.other), Port: portOf(8080)})
	n.put(n.Pools, f.pool(1), Pool{Now: Generation{Id: f.pool(1)*2 + 1, Count: 1}, Flags: PoolMembers})
	n.expect("serves still", n.run(n.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_FORWARDED, w.forwarded)
	if err := n.Members.Delete(MemberKey{Generation: f.pool(1)*2 + 1, Backend: endpointOf(w.forwarded.dst)}); err != nil {
		n.Fatal(err)
	}
	n.expect("serves no more", n.run(n.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, w.first.to(w.first.src, other))
}

// If the kernel throws out one row of a flow, packets of the other direction bring
// it back.
func tryThrownOut(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	n.run(n.PacketIn, "pod", w.reply.frame(), 0)
	key := bpfFlowKey{Tuple: bpfTuple{Src: endpointOf(w.reply.src), Dst: endpointOf(w.reply.dst)}, Protocol: uint32(protocol)}
	if err := n.Flows.Delete(key); err != nil {
		n.Fatal(err)
	}
	n.age(10 * time.Second)
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	n.expect("reply", n.run(n.PacketIn, "pod", w.reply.frame(), 0), actionRedirect, bpfOutcomePACKET_REPLIED, w.replied)
}

// What the node itself sends is seen when it goes out.
func tryOwn(n *node, f family, protocol uint8) {
	n.service(13, port(f.vip, 70), protocol, Path{Verdict: Forward, Masquerade: 1}, 0, port(f.backend, 8080))
	in := n.from("wan", first(protocol, port(f.node, 40000), port(f.vip, 70)))
	out := in.to(in.src, port(f.backend, 8080))
	out.hops = 64
	n.expect("own", n.run(n.PacketOut, "wan", in.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, out)
	back := n.from("pod", answer(out))
	restored := back.to(in.dst, in.src)
	restored.hops = 64
	action := int32(actionRedirect)
	if f.vip.Is6() {
		action = actionGoesOn
	}
	n.expect("reply", n.run(n.PacketIn, "pod", back.frame(), 0), action, bpfOutcomePACKET_REPLIED, restored)
}

// tryReset: of a pool that wants it, a connection whose backend is gone is reset at
// its next segment, again and again until the sender hears it.
func tryReset(n *node, f family, protocol uint8) {
	if protocol != unix.IPPROTO_TCP {
		n.Skip("has no reset")
	}
	w := n.newFlow(f, protocol)
	number := f.pool(1)
	now := Pool{Now: Generation{Id: 2 * number, Count: 1}, Flags: PoolMembers | PoolReset}
	n.put(n.Pools, number, now)
	n.run(n.PacketIn, "pod", w.first.frame(), 0)
	n.run(n.PacketIn, "pod", w.reply.frame(), 0)
	in, out := w.first, w.forwarded
	in.flags, in.seq, in.ack, in.payload = 0x18, 1000, 2000, []byte("are you there?")
	out.flags, out.seq, out.ack, out.payload = in.flags, in.seq, in.ack, in.payload
	n.expect("serves", n.run(n.PacketIn, "pod", in.frame(), 0), actionRedirect, bpfOutcomePACKET_FORWARDED, out)

	member := MemberKey{Generation: 2 * number, Backend: endpointOf(w.forwarded.dst)}
	if err := n.Members.Delete(member); err != nil {
		n.Fatal(err)
	}
	n.put(n.Begun, uint32(0), handedOver)
	n.expect("hands over", n.run(n.PacketIn, "pod", in.frame(), 0), actionRedirect, bpfOutcomePACKET_FORWARDED, out)
	n.put(n.Begun, uint32(0), someBegun)
	for range 2 {
		got := n.run(n.PacketIn, "pod", in.frame(), 0)
		want := in.back()
		want.flags, want.seq, want.ack, want.payload = 0x04, in.ack, 0, nil
		want.window = binary.BigEndian.Uint16(got.frame[etherLen+ipLen(f.vip)+14:])
		n.forDevice(want, got.frame)
		n.expect("gone", got, actionRedirect, bpfOutcomePACKET_RESET, want)
	}
	in.ack, in.flags = 0, 0x01
	got := n.run(n.PacketIn, "pod", in.frame(), 0)
	want := in.back()
	want.flags, want.seq, want.ack, want.payload = 0x14, 0, in.seq+uint32(len(in.payload))+1, nil
	want.window = binary.BigEndian.Uint16(got.frame[etherLen+ipLen(f.vip)+14:])
	n.expect("gone, and the sender acknowledges nothing", got, actionRedirect, bpfOutcomePACKET_RESET, want)
	in.flags, out.flags, out.ack = 0x04, 0x04, 0
	n.expect("the sender's own reset", n.run(n.PacketIn, "pod", in.frame(), 0), actionRedirect, bpfOutcomePACKET_FORWARDED, out)
}
