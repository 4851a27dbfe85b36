package node

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
)

// Plan is what the kernel is to have. Its lists are in the order of families, and
// then of the pod CIDRs that they are for.
type Plan struct {
	Tunnels    []Tunnel
	Neighbours []Neighbour
	Routes     []Route
	Rules      []Rule
	// MTU is what pods' interfaces can have so that no packet of theirs is too
	// large for the way to any other pod; 0: not known.
	MTU int
	// Ready: this node has pod CIDRs, and nothing keeps its pods from being reached.
	Ready    bool
	Problems []Problem
}

// Tunnel is a VXLAN device. It learns nothing: who is behind it is said by
// Neighbours.
type Tunnel struct {
	Name  string
	Local netip.Addr // where its packets come from
	VNI   int
	Port  int
	MAC   MAC
	MTU   int
}

// Neighbour is a node behind a tunnel: an entry in the device's neighbour table
// (Addr → MAC) and one in its forwarding table (MAC → Remote).
type Neighbour struct {
	Tunnel string
	Addr   netip.Addr
	MAC    MAC
	Remote netip.Addr
}

// Route leads to the pods of another node, or, in table Table, to a node.
type Route struct {
	Table int
	Dst   netip.Prefix
	Via   netip.Addr
	Dev   string
	Src   netip.Addr // of packets of this node itself
	// MTU is that of the pods behind a route of the main table; 0: the device's. Their
	// interfaces may take less than the link does. Where bridges call ip6tables
	// (br_netfilter), this node puts together what a pod has sent in fragments, and forgets
	// how large they were: sent on in one piece it would be too large for the pod's bridge.
	MTU int
}

// Rule sends packets from a range to table Table first.
type Rule struct{ From netip.Prefix }

// Table has routes to nodes behind tunnels, for packets from pods only. A node's
// address is reached without a tunnel; but the network in between may drop what
// comes from a pod's address, which it does not know.
const Table = 7250

// mainTable is RT_TABLE_MAIN.
const mainTable = 254

// Make plans how the pods of self are connected to those of others, the other
// nodes in any order.
func Make(self Member, others []Member, u *Underlay, o Options) Plan {
	m := maker{self: self, others: others, underlay: u, options: o, at: make(map[netip.Addr]string, 2*len(others))}
	for a := range u.Addrs {
		m.at[a] = self.Name
	}
	for _, f := range families {
		m.connect(f)
	}
	m.placeServices()
	m.chooseMTU()
	m.plan.Ready = len(self.PodCIDRs) > 0 && !m.unfit
	if len(self.PodCIDRs) == 0 {
		m.problem(NoPodCIDR, self.Name, "it has no pod CIDR: no pods can run on it")
	}
	slices.SortFunc(m.plan.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Member, b.Member), cmp.Compare(a.Text, b.Text))
	})
	return m.plan
}

// maker makes a Plan.
type maker struct {
	self     Member
	others   []Member
	underlay *Underlay
	options  Options
	plan     Plan
	unfit    bool                  // the node's own pods cannot be reached
	at       map[netip.Addr]string // address → the node that has it
}

func (m *maker) problem(kind Kind, member, format string, args ...any) {
	m.plan.Problems = append(m.plan.Problems, Problem{kind, member, fmt.Sprintf(format, args...)})
}

// connect plans one family.
func (m *maker) connect(f family) {
	claims := m.claims(f)
	own := m.self.podCIDR(f)
	if len(claims) == 0 && !own.IsValid() {
		return
	}
	if !own.IsValid() && len(m.self.PodCIDRs) > 0 {
		m.problem(NoPodCIDROfBoth, m.self.Name, "it has no %s pod CIDR, other nodes have: its pods reach theirs by the other family only", f.name)
	}
	local := m.self.addr(f)
	device, ok := m.underlay.Addrs[local]
	if !ok {
		m.unfit = m.unfit || own.IsValid()
		m.unreachable(f, local)
		return
	}
	m.plan.Routes = slices.Grow(m.plan.Routes, 2*len(claims))
	way := way{family: f, local: local, mtu: device.MTU}
	for _, c := range m.settle(f, claims) {
		m.reach(&way, c)
	}
	if way.tunnelled {
		way.mtu -= f.overhead
		m.addTunnel(way)
	}
	// An address on the loopback device has none but its paths' MTU.
	if way.mtu <= maxMTU && (m.plan.MTU == 0 || way.mtu < m.plan.MTU) {
		m.plan.MTU = way.mtu
	}
}

// unreachable tells that this node has no address of a family.
func (m *maker) unreachable(f family, local netip.Addr) {
	if f.name == families[1].name && m.underlay.NoIPv6 {
		m.problem(IPv6Disabled, m.self.Name, "IPv6 is disabled in its kernel (net.ipv6.conf.all.disable_ipv6): pods of other nodes are not reached over IPv6")
		return
	}
	m.problem(NoAddress, m.self.Name, "its %s address %s is on no interface that is up: pods of other nodes are not reached over %s", f.name, orNone(local), f.name)
}

// maxMTU is the largest that a device other than the loopback one has (IP_MAX_MTU).
const maxMTU = 65535

func orNone(a netip.Addr) string {
	if !a.IsValid() {
		return "(none)"
	}
	return a.String()
}

// way is how one family leaves this node.
type way struct {
	family
	local     netip.Addr
	mtu       int  // the smallest of the paths'
	tunnelled bool // some node is behind a tunnel
}

// reach plans the way to the pods of one node.
func (m *maker) reach(w *way, c claim) {
	remote := m.others[c.member].addr(w.family)
	if !remote.IsValid() {
		m.problem(NoAddress, c.Name, "it has no %s address: its pods %s are not reached", w.name, c.cidr)
		return
	}
	path := m.underlay.path(remote)
	owner, taken := m.at[remote]
	m.at[remote] = c.Name
	switch {
	case taken:
		m.problem(AddressTaken, c.Name, "its address %s is that of node %s: its pods %s are not reached", remote, owner, c.cidr)
		if owner == m.self.Name {
			m.problem(AddressTaken, owner, "its address %s is that of node %s too", remote, c.Name)
		}
	case path.OnLink && m.options.Routing != VXLAN:
		w.fit(path)
		m.plan.Routes = append(m.plan.Routes, Route{Table: mainTable, Dst: c.cidr, Via: remote, Dev: path.Name, Src: w.local})
	case m.options.Routing == Direct:
		m.problem(NotOnLink, c.Name, "its address %s is not on the link, and routing is %s: its pods %s are not reached", remote, Direct, c.cidr)
	default:
		w.fit(path)
		m.tunnelTo(w, c.cidr, remote)
	}
}

// chooseMTU has pods and the routes to them get the MTU that was asked for, if the ways
// from here take it.
func (m *maker) chooseMTU() {
	switch asked := m.options.MTU; {
	case asked == 0:
	case m.plan.MTU > 0 && asked > m.plan.MTU:
		m.problem(MTUTooLarge, m.self.Name, "pods are to have an MTU of %d, but the ways from this node take %d: they get that", asked, m.plan.MTU)
	default:
		m.plan.MTU = asked
	}
	m.plan.limit(m.plan.MTU)
}

// limit gives the routes to pods their MTU.
func (p *Plan) limit(mtu int) {
	for i := range p.Routes {
		if p.Routes[i].Table == mainTable {
			p.Routes[i].MTU = mtu
		}
	}
}

// fit makes room for a path.
func (w *way) fit(p Path) {
	if p.MTU > 0 {
		w.mtu = min(w.mtu, p.MTU)
	}
}

func (m *maker) tunnelTo(w *way, podCIDR netip.Prefix, remote netip.Addr) {
	w.tunnelled = true
	mac := macOf(remote)
	via := behind(remote, mac)
	m.plan.Neighbours = append(m.plan.Neighbours, Neighbour{w.tunnel, via, mac, remote})
	host := netip.PrefixFrom(remote, remote.BitLen())
	m.plan.Routes = append(m.plan.Routes,
		Route{Table: mainTable, Dst: podCIDR, Via: via, Dev: w.tunnel, Src: w.local},
		Route{Table: Table, Dst: host, Via: via, Dev: w.tunnel, Src: w.local})
}

func (m *maker) addTunnel(w way) {
	m.plan.Tunnels = append(m.plan.Tunnels, Tunnel{
		Name:  w.tunnel,
		Local: w.local,
		VNI:   m.options.VNI,
		Port:  m.options.Port,
		MAC:   macOf(w.local),
		MTU:   w.mtu,
	})
	if own := m.self.podCIDR(w.family); own.IsValid() {
		m.plan.Rules = append(m.plan.Rules, Rule{own})
	}
}

// macOf is the MAC address of the tunnel of the node that has an address: every
// node works out that of every other one, nothing is exchanged. It is unicast and
// locally administered (IEEE 802, section 8.4) with 46 bits of a hash: among 5,000
// nodes, two have the same in one of five million clusters.
func macOf(a netip.Addr) MAC {
	sum := sha256.Sum256(a.AsSlice())
	mac := MAC(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// behind is by what address a node is the next hop behind a tunnel. IPv4: its own;
// neighbours are a matter of one device. IPv6: a link-local one, made of the MAC
// (RFC 4291, appendix A), because the kernel wants every other next hop to be
// reached by the same device in the main table (ip6_route_check_nh_onlink).
func behind(remote netip.Addr, mac MAC) netip.Addr {
	if remote.Is4() {
		return remote
	}
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}
