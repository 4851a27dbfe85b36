package ebpf

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/netns"
)

// A node is what the programs run in: a namespace with the links pod and wan, and
// routes and neighbours, but nobody there.
//
//	pod   10.244.1.0/24  fd00:10:244:1::/64
//	wan   192.168.50.1   fd00:50::1          default via .254, ::fe
type node struct {
	testing.TB
	ns    *netns.NS
	links map[string]*net.Interface
	seen  map[bpfOutcome]bool // outcomes that a test wanted
	bpfObjects
}

func newNode(t testing.TB) *node {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	n := &node{TB: t, ns: netns.NewT(t), links: map[string]*net.Interface{}, seen: map[bpfOutcome]bool{}}
	n.ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
		for link in pod wan; do
			ip link add $link type veth peer name far-$link
			ip link set dev $link addrgenmode none
			ip link set dev far-$link up
			ip link set dev $link up
		done
		ip link set dev wan mtu 1400
		ip addr add 192.168.50.1/24 dev wan
		ip addr add fd00:50::1/64 dev wan nodad
		ip route add 10.244.1.0/24 dev pod
		ip route add fd00:10:244:1::/64 dev pod
		ip route add default via 192.168.50.254
		ip route add default via fd00:50::fe
		ip route add unreachable 10.244.3.0/24
		ip route add unreachable fd00:10:244:3::/64
		for host in 10.244.1.2 10.244.1.3 10.244.1.9 fd00:10:244:1::2 fd00:10:244:1::3 fd00:10:244:1::9; do
			ip neigh add $host lladdr 02:00:00:00:00:02 dev pod
		done
		ip neigh add 192.168.50.254 lladdr 02:00:00:00:00:fe dev wan
		ip neigh add fd00:50::fe lladdr 02:00:00:00:00:fe dev wan`)
	if err := n.ns.Do(func() error {
		for _, name := range []string{"lo", "pod", "wan"} {
			link, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			n.links[name] = link
		}
		spec, err := loadBpf()
		if err != nil {
			return err
		}
		return n.load(spec, nil)
	}); err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { _ = n.Close() })
	n.put(n.SctpShifts, uint32(0), shifts())
	for _, a := range []string{"192.168.50.1", "fd00:50::1"} {
		addr := netip.MustParseAddr(a)
		n.put(n.NodeAddrs, addrRow(addr), NodeAddr{NodePorts: 1})
		n.put(n.MasqueradeAddrs, masqueradeKey(0, addr.Is6()), addrRow(addr))
	}
	for _, p := range []string{"10.244.0.0/16", "fd00:10:244::/48"} {
		prefix := netip.MustParsePrefix(p)
		bits := prefix.Bits()
		if prefix.Addr().Is4() {
			bits += 96
		}
		n.put(n.PodCidrs, PrefixKey{Prefixlen: uint32(bits), Addr: addrRow(prefix.Addr())}, uint32(1))
	}
	return n
}

func (n *node) load(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map) error {
	flags, err := fibFlags()
	if err != nil {
		return err
	}
	if err := spec.Variables[bpfVarFibFlags].Set(flags); err != nil {
		return err
	}
	return spec.LoadAndAssign(&n.bpfObjects, &ebpf.CollectionOptions{MapReplacements: maps})
}

func (n *node) put(m *ebpf.Map, key, value any) {
	n.Helper()
	if err := m.Put(key, value); err != nil {
		n.Fatalf("put row of %s: %v", m, err)
	}
}

// portOf is a port as the maps have it.
func portOf(p uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, p))
}

func endpointOf(a netip.AddrPort) Endpoint {
	return Endpoint{Addr: addrRow(a.Addr()), Port: portOf(a.Port())}
}

// service makes a frontend whose senders of all classes are led to backends.
func (n *node) service(number uint32, at netip.AddrPort, protocol uint8, path Path, flags uint32, backends ...netip.AddrPort) {
	n.Helper()
	path.Pool = number
	key := FrontendKey{Addr: addrRow(at.Addr()), Port: portOf(at.Port()), Protocol: protocol}
	n.put(n.Frontends, key, Frontend{Key: key, Paths: [3]Path{path, path, path}, Id: number, Flags: flags})
	n.pool(number, backends...)
}

func (n *node) pool(number uint32, backends ...netip.AddrPort) {
	n.Helper()
	for i, b := range backends {
		n.put(n.Backends, BackendKey{Generation: 2 * number, Index: uint32(i)}, Backend{Generation: 2 * number, Addr: addrRow(b.Addr()), Port: portOf(b.Port())})
		n.put(n.Members, MemberKey{Generation: 2 * number, Backend: endpointOf(b)}, MemberServes|MemberTurns)
	}
	n.put(n.Pools, number, Pool{Now: Generation{Id: 2 * number, Count: uint32(len(backends))}, Flags: PoolMembers})
}

// skb is struct __sk_buff as BPF_PROG_RUN takes it.
type skb struct {
	_              [9]uint32
	IngressIfindex uint32
	Ifindex        uint32
	_              [30]uint32
	GsoSegs        uint32
	_              uint32
	_              uint32
	GsoSize        uint32
	_              [3]uint32
}

// came is what became of a packet.
type came struct {
	action  int32
	outcome bpfOutcome
	frame   []byte
}

// checksumComplete is BPF_F_TEST_SKB_CHECKSUM_COMPLETE (kernel 6.18): the packet is
// as from a device that has summed all of it up, and the kernel looks afterwards
// whether the sum is still right.
const checksumComplete = 1 << 2

const (
	actionGoesOn   = -1
	actionDrop     = 2
	actionRedirect = 7
)

func (n *node) run(program *ebpf.Program, link string, in []byte, flags uint32) came {
	n.Helper()
	before := n.outcomes()
	out := make([]byte, len(in)+256)
	opts := &ebpf.RunOptions{Data: in, DataOut: out, Context: skb{Ifindex: uint32(n.links[link].Index)}, Flags: flags}
	var c came
	if err := n.ns.Do(func() error {
		action, err := program.Run(opts)
		c.action = int32(action)
		return err
	}); err != nil {
		n.Fatal(err)
	}
	c.frame = opts.DataOut
	c.outcome = bpfOutcomeOUTCOMES
	for i, now := range n.outcomes() {
		switch now - before[i] {
		case 0:
		case 1:
			if c.outcome != bpfOutcomeOUTCOMES {
				n.Fatalf("two outcomes of one packet: %d and %d", c.outcome, i)
			}
			c.outcome = bpfOutcome(i)
		default:
			n.Fatalf("outcome %d was counted %d times for one packet", i, now-before[i])
		}
	}
	return c
}

func (n *node) outcomes() []uint64 {
	n.Helper()
	counts := make([]uint64, bpfOutcomeOUTCOMES)
	for i := range counts {
		var each []bpfTally
		if err := n.Outcomes.Lookup(uint32(i), &each); err != nil {
			n.Fatal(err)
		}
		for _, c := range each {
			counts[i] += c.Count
		}
	}
	return counts
}

// from is a packet that comes in by a link: the router's MAC address is that of
// the link.
func (n *node) from(link string, w wire) wire {
	copy(w.macs[0][:], n.links[link].HardwareAddr)
	w.macs[1] = [6]byte{2, 0, 0, 0, 0, 9}
	return w
}

// expect compares what became of a packet with what should have.
func (n *node) expect(what string, got came, action int32, outcome bpfOutcome, want wire) {
	n.Helper()
	n.seen[outcome] = true
	if got.action != action || got.outcome != outcome {
		n.Errorf("%s: action %d, outcome %d; want %d, %d", what, got.action, got.outcome, action, outcome)
	}
	if diff := cmp.Diff(fmt.Sprintf("% x", want.frame()), fmt.Sprintf("% x", got.frame)); diff != "" {
		n.Errorf("%s: (-want +got)\n%s", what, diff)
	}
}

// A family is the addresses of a test in one of the two.
type family struct {
	client, backend, other, vip, node, outside, far, nowhere netip.Addr
}

func addrs(client, backend, other, vip, node, outside, far, nowhere string) family {
	p := netip.MustParseAddr
	return family{p(client), p(backend), p(other), p(vip), p(node), p(outside), p(far), p(nowhere)}
}

var families = map[string]family{
	"ipv4": addrs("10.244.1.9", "10.244.1.2", "10.244.1.3", "10.96.0.10", "192.168.50.1", "203.0.113.9", "10.244.2.2", "10.244.3.2"),
	"ipv6": addrs("fd00:10:244:1::9", "fd00:10:244:1::2", "fd00:10:244:1::3", "fd00:10:96::10", "fd00:50::1", "2001:db8::9", "fd00:10:244:2::2", "fd00:10:244:3::2"),
}

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

// first is the first packet of a flow.
func first(protocol uint8, src, dst netip.AddrPort) wire {
	w := wire{protocol: protocol, src: src, dst: dst, window: 64240, seq: 0xfffffffe}
	switch protocol {
	case unix.IPPROTO_TCP:
		w.flags = 0x02
	case unix.IPPROTO_UDP:
		w.payload = []byte("who are you?!")
	case unix.IPPROTO_SCTP:
		w.payload = []byte{1, 0, 0, 20, 0xca, 0xfe, 0xba, 0xbe, 0, 1, 0, 0, 0, 2, 0, 2, 0, 0, 0, 7}
	}
	return w
}

// answer is the backend's first.
func answer(w wire) wire {
	w.src, w.dst = w.dst, w.src
	switch w.protocol {
	case unix.IPPROTO_TCP:
		w.flags, w.seq, w.ack = 0x12, 77, w.seq+1
	case unix.IPPROTO_UDP:
		w.payload = []byte("a backend")
	case unix.IPPROTO_SCTP:
		w.tag = 0xcafebabe
		w.payload = append([]byte{2}, w.payload[1:]...)
	}
	return w
}

func (w wire) to(src, dst netip.AddrPort) wire {
	w.src, w.dst = src, dst
	w.hops = 63
	return w
}

var protocols = map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "sctp": unix.IPPROTO_SCTP}

// TestPacket tries everything for both families and all protocols, on a node that
// has forgotten all flows each time.
func TestPacket(t *testing.T) {
	n := newNode(t)
	for what, try := range map[string]func(n *node, f family, protocol uint8){
		"refused":           tryRefused,
		"dropped":           tryDropped,
		"affinity":          tryAffinity,
		"masquerade":        tryMasquerade,
		"leaving":           tryLeaving,
		"clash":             tryClash,
		"ways":              tryWays,
		"errors":            tryErrors,
		"fragments":         tryFragments,
		"options":           tryOptions,
		"unsummed":          tryUnsummed,
		"malformed":         tryMalformed,
		"stages":            tryStages,
		"tags":              tryTags,
		"no port":           tryNoPort,
		"over":              tryOver,
		"thrown out":        tryThrownOut,
		"own":               tryOwn,
		"reset":             tryReset,
		"flip":              tryFlip,
		"forward and reply": tryForwardAndReply,
	} {
		for name, f := range families {
			for word, protocol := range protocols {
				t.Run(what+"/"+name+"/"+word, func(t *testing.T) {
					n := *n
					n.TB = t
					n.forgetFlows()
					try(&n, f, protocol)
				})
			}
		}
	}
	for i, o := range outcomes {
		// No packet of a test's is one that the kernel has no memory for.
		if !n.seen[bpfOutcome(i)] && o.Path == packetPath && i != int(bpfOutcomePACKET_NO_MEMORY) {
			t.Errorf("no packet ended as %q", o.Name)
		}
	}
}

func (n *node) forgetFlows() {
	n.Helper()
	for {
		key, err := n.Flows.NextKeyBytes(nil)
		if err != nil {
			n.Fatal(err)
		}
		if key == nil {
			return
		}
		if err := n.Flows.Delete(key); err != nil {
			n.Fatal(err)
		}
	}
}

var forward = Path{Verdict: Forward}

// flow is a Service's one, from its first packet on.
type flow struct{ first, forwarded, reply, replied wire }

// pool is a number that pools of both families can have.
func (f family) pool(number uint32) uint32 {
	if f.vip.Is6() {
		return number + 100
	}
	return number
}

// newFlow makes a Service, whose pool is number 1, and the packets of a flow to it.
func (n *node) newFlow(f family, protocol uint8) flow {
	n.Helper()
	client, vip, backend := port(f.client, 40000), port(f.vip, 80), port(f.backend, 8080)
	n.service(f.pool(1), vip, protocol, forward, 0, backend)
	var w flow
	w.first = n.from("pod", first(protocol, client, vip))
	w.forwarded = w.first.to(client, backend)
	w.reply = n.from("pod", answer(w.forwarded))
	w.reply.hops = 64
	w.replied = w.reply.to(vip, client)
	return w
}

func tryForwardAndReply(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	for _, flags := range []uint32{0, checksumComplete} {
		n.forgetFlows()
		n.expect("first", n.run(n.PacketIn, "pod", w.first.frame(), flags), actionRedirect, bpfOutcomePACKET_BEGUN, w.forwarded)
		n.expect("again", n.run(n.PacketIn, "pod", w.first.frame(), flags), actionRedirect, bpfOutcomePACKET_FORWARDED, w.forwarded)
		n.expect("reply", n.run(n.PacketIn, "pod", w.reply.frame(), flags), actionRedirect, bpfOutcomePACKET_REPLIED, w.replied)
	}
	elsewhere := n.from("pod", first(protocol, w.first.src, port(f.vip, 81)))
	n.expect("elsewhere", n.run(n.PacketIn, "pod", elsewhere.frame(), 0), actionGoesOn, bpfOutcomePACKET_PASSED, elsewhere)
}

// tryFlip has programs that have flipped to a table of flows, and others that read the
// one before it, which has another size. What begins with either is known to both.
func tryFlip(n *node, f family, protocol uint8) {
	w := n.newFlow(f, protocol)
	told := n.tellEachOther()
	n.expect("first", n.run(n.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_BEGUN, w.forwarded)
	rows := rowsIn[bpfToldKey, bpfTold](n, told)
	if diff := cmp.Diff(toldOf(rowsIn[bpfFlowKey, bpfFlow](n, n.Flows)), rows); diff != "" || len(rows) != 2 {
		n.Errorf("others are told of other rows (-begun +told):\n%s", diff)
	}
	n.forgetFlows() // as if another program had begun it
	n.expect("reply", n.run(n.PacketIn, "pod", w.reply.frame(), 0), actionRedirect, bpfOutcomePACKET_REPLIED, w.replied)
	n.expect("again", n.run(n.PacketIn, "pod", w.first.frame(), 0), actionRedirect, bpfOutcomePACKET_FORWARDED, w.forwarded)
	n.forgetFlows()
	if err := n.Former.Delete(uint32(0)); err != nil {
		n.Fatal(err)
	}
	n.expect("afterwards", n.run(n.PacketIn, "pod", w.reply.frame(), 0), actionGoesOn, bpfOutcomePACKET_PASSED, w.reply)
}

// tellEachOther gives programs a table in which they tell each other of flows.
func (n *node) tellEachOther() *ebpf.Map {
	n.Helper()
	spec, err := loadBpf()
	if err != nil {
		n.Fatal(err)
	}
	told, err := ebpf.NewMap(spec.Maps[bpfMapFormer].InnerMap)
	if err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = told.Close() })
	n.put(n.Former, uint32(0), told)
	return told
}

func toldOf(flows map[bpfFlowKey]bpfFlow) map[bpfToldKey]bpfTold {
	told := map[bpfToldKey]bpfTold{}
	for k, f := range flows {
		told[bpfToldKey{Tuple: k.Tuple, Protocol: k.Protocol}] = bpfTold{
			To: f.To, Tag: f.Tag, Seen: f.Seen, Direction: f.Direction, Stage: f.Stage, EndedBy: f.EndedBy, Class: f.Class, Check: f.Check,
		}
	}
	return told
}

func rowsIn[K comparable, V any](n *node, m *ebpf.Map) map[K]V {
	n.Helper()
	all := map[K]V{}
	var key K
	var row V
	rows := m.Iterate()
	for rows.Next(&key, &row) {
		all[key] = row
	}
	if err := rows.Err(); err != nil {
		n.Fatal(err)
	}
	return all
}
