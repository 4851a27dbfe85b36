package bpf

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/ebpf"
	"github.com/fairlead/fairlead/proxy/service"
)

// addrRow is an address as the maps have it: IPv4 as IPv4-mapped IPv6, in network
// byte order.
func addrRow(a netip.Addr) ebpf.Addr {
	b := a.As16()
	var out ebpf.Addr
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// addrOf is the opposite of addrRow.
func addrOf(row ebpf.Addr) netip.Addr {
	var b [16]byte
	for i, w := range row.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// portRow is a port in network byte order. It is its own opposite.
func portRow(port uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, port))
}

func endpointRow(a netip.AddrPort) ebpf.Endpoint {
	return ebpf.Endpoint{Addr: addrRow(a.Addr()), Port: portRow(a.Port())}
}

func endpointOf(row ebpf.Endpoint) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(row.Addr), portRow(row.Port))
}

func keyRow(k service.Key) ebpf.FrontendKey {
	return ebpf.FrontendKey{Addr: addrRow(k.Addr), Port: portRow(k.Port), Protocol: uint8(k.Protocol)}
}

func keyOf(row ebpf.FrontendKey) service.Key {
	return service.Key{Addr: addrOf(row.Addr), Port: portRow(row.Port), Protocol: service.Protocol(row.Protocol)}
}

// prefixRow is a range as IPv6.
func prefixRow(p netip.Prefix) ebpf.PrefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return ebpf.PrefixKey{Prefixlen: uint32(bits), Addr: addrRow(p.Masked().Addr())}
}

func sourceRow(id uint32, p netip.Prefix) ebpf.SourceKey {
	row := prefixRow(p)
	frontend := binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, id))
	return ebpf.SourceKey{Prefixlen: 32 + row.Prefixlen, Frontend: frontend, Addr: row.Addr}
}

var verdicts = map[service.Verdict]uint8{
	service.Pass: ebpf.Pass, service.Forward: ebpf.Forward, service.Reject: ebpf.Reject, service.Drop: ebpf.Drop,
}

var classes = map[service.Class]int{
	service.FromPod: int(ebpf.ClassPod), service.FromNode: int(ebpf.ClassNode), service.FromOutside: int(ebpf.ClassOutside),
}

func pathRow(p service.Path, pool uint32) ebpf.Path {
	row := ebpf.Path{Verdict: verdicts[p.Verdict], Pool: pool}
	if p.Masquerade {
		row.Masquerade = 1
	}
	return row
}

// originRow names a Service port. Names longer than Kubernetes allows are cut.
func originRow(name string) ebpf.Origin {
	var row ebpf.Origin
	for i, c := range []byte(name) {
		if i == len(row.Name)-1 {
			break
		}
		row.Name[i] = int8(c)
	}
	return row
}

func originName(row ebpf.Origin) string {
	var b []byte
	for _, c := range row.Name {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// pool is what the maps hold of a pool.
type pool struct {
	number   uint32
	now      ebpf.Generation
	affinity uint32 // seconds
	flags    uint32
	backends []ebpf.Endpoint
	members  map[ebpf.Endpoint]uint32 // nil: not in the maps
	// externals are those of backends that are outside the cluster: see leaving.go.
	externals []netip.Addr
}

// poolRows is what they should hold, but for the generation.
func poolRows(number uint32, p service.Pool) pool {
	out := pool{number: number, affinity: seconds(p.Affinity), externals: p.External}
	for _, b := range p.Backends {
		out.backends = append(out.backends, endpointRow(b))
	}
	if p.Protocol == service.TCP && p.Affinity == 0 && !p.Reset {
		return out
	}
	if p.Reset {
		out.flags |= ebpf.PoolReset
	}
	out.flags |= ebpf.PoolMembers
	out.members = map[ebpf.Endpoint]uint32{}
	for _, b := range p.Serving {
		out.members[endpointRow(b)] |= ebpf.MemberServes
	}
	for _, b := range out.backends {
		out.members[b] |= ebpf.MemberServes | ebpf.MemberTurns
	}
	return out
}

// seconds is a time to live, which must not become 0: forever to nobody.
func seconds(d time.Duration) uint32 { return uint32((d + time.Second - 1) / time.Second) }

func backendRow(generation uint32, b ebpf.Endpoint) ebpf.Backend {
	return ebpf.Backend{Generation: generation, Addr: b.Addr, Port: b.Port}
}

func (p pool) row() ebpf.Pool {
	return ebpf.Pool{Now: p.now, Affinity: p.affinity, Flags: p.flags}
}

func (p pool) equal(q pool) bool {
	return p.affinity == q.affinity && p.flags == q.flags && slices.Equal(p.externals, q.externals) && p.sameBackends(q)
}

func (p pool) sameBackends(q pool) bool {
	if !slices.Equal(p.backends, q.backends) || len(p.members) != len(q.members) {
		return false
	}
	for m, is := range p.members {
		if q.members[m] != is {
			return false
		}
	}
	return true
}

// other is the generation of the pool that is not in use.
func (p pool) other() uint32 {
	if p.now.Id == 2*p.number {
		return p.now.Id + 1
	}
	return 2 * p.number
}

// mayGoOn says whether a socket may go on with the backend that it is connected to.
// TCP ones are asked about only if their Service wanted that when they connected; it
// may have changed its mind.
func mayGoOn(t *service.Table, peer ebpf.Peer) bool {
	to, protocol := endpointOf(peer.Frontend), service.Protocol(peer.Protocol)
	if _, ok := t.Frontend(to, protocol); ok && protocol == service.TCP && !t.Resets(to, protocol) {
		return true
	}
	return t.Serves(to, protocol, endpointOf(peer.Backend))
}

// loopback stands for 127.0.0.0/8.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// nodeRows are the node's addresses. Loopback, which is not the Node object's, is
// among them where node ports are on it.
func nodeRows(t *service.Table) map[ebpf.Addr]ebpf.NodeAddr {
	rows := map[ebpf.Addr]ebpf.NodeAddr{}
	if t.LocalhostNodePorts {
		rows[addrRow(loopback)] = ebpf.NodeAddr{NodePorts: 1}
	}
	nodePorts := func(a netip.Addr) bool {
		return slices.ContainsFunc(t.NodePortCIDRs, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, a := range t.NodeAddrs {
		row := ebpf.NodeAddr{}
		if nodePorts(a) {
			row.NodePorts = 1
		}
		rows[addrRow(a)] = row
	}
	return rows
}

// podsKnown says whether anybody counts as a pod in a family.
func podsKnown(t *service.Table, ipv6 bool) bool {
	return len(t.PodInterfaces) > 0 ||
		slices.ContainsFunc(t.PodCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() == ipv6 })
}

func podRows(t *service.Table) map[ebpf.PrefixKey]uint32 {
	rows := map[ebpf.PrefixKey]uint32{}
	for _, p := range t.PodCIDRs {
		rows[prefixRow(p)] = 1
	}
	return rows
}
