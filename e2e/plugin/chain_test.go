package plugin

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/fairlead/fairlead/e2e/netns"
)

// patience is how long a test waits for what happens in a moment before it
// gives up.
const patience = 10 * time.Second

// TestChain has plugins of the reference, as they are, come after Fairlead (and
// one before): ADD, what the chain is for, CHECK, and DEL, twice.
func TestChain(t *testing.T) {
	tuning := func(t *testing.T) object {
		return object{"type": "tuning", "dataDir": t.TempDir(), "mac": "02:aa:00:00:00:07", "mtu": 1400,
			"sysctl": object{"net.ipv4.conf.IFNAME.log_martians": "1"}}
	}
	isTuned := func(s *site, t *testing.T) {
		s.says(t, s.pod.ns, "mtu 1400", "ip", "link", "show", "eth0")
		s.says(t, s.pod.ns, "02:aa:00:00:00:07", "ip", "link", "show", "eth0")
		s.says(t, s.pod.ns, "log_martians = 1", "sysctl", "net.ipv4.conf.eth0.log_martians")
		s.isReachable(t)
	}
	limits := object{"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000, "egressRate": 8_000_000, "egressBurst": 8_000_000}
	tests := map[string]struct {
		site         func(*testing.T) *site
		after        []func(*testing.T) object // the plugins after Fairlead
		capabilities map[string]any
		prepare      func(*site, *testing.T)
		is           func(*site, *testing.T)
	}{
		"portmap by iptables":        {bridged, plugins(portmap("iptables")), hostPort, nil, (*site).isPublished},
		"portmap by nftables":        {bridged, plugins(portmap("nftables")), hostPort, nil, (*site).isPublished},
		"bandwidth":                  {bridged, plugins(limits), nil, nil, (*site).isLimited},
		"tuning":                     {bridged, []func(*testing.T) object{tuning}, nil, nil, isTuned},
		"firewall":                   {bridged, plugins(object{"type": "firewall", "backend": "iptables"}), nil, (*site).dropAll, (*site).reachesOutside},
		"firewall to one bridge":     {bridged, plugins(object{"type": "firewall", "backend": "iptables", "ingressPolicy": "same-bridge"}), nil, (*site).dropAll, (*site).reachesOutside},
		"sbr":                        {bridged, plugins(object{"type": "sbr"}), nil, nil, (*site).isRouted},
		"loopback":                   {bridged, plugins(object{"type": "loopback"}), nil, nil, (*site).isReachable},
		"loopback before, tuning":    {bridged, []func(*testing.T) object{tuning}, nil, (*site).loopbackFirst, isTuned},
		"loopback before macvlan":    {onTheWire, []func(*testing.T) object{tuning}, nil, (*site).loopbackFirst, isTuned},
		"macvlan, tuning":            {onTheWire, []func(*testing.T) object{tuning}, nil, nil, isTuned},
		"macvlan, sbr":               {onTheWire, plugins(object{"type": "sbr"}), nil, nil, (*site).isRouted},
		"macvlan, loopback":          {onTheWire, plugins(object{"type": "loopback"}), nil, nil, (*site).isReachable},
		"macvlan, firewall, and sbr": {onTheWire, plugins(object{"type": "firewall", "backend": "iptables"}, object{"type": "sbr"}), nil, nil, (*site).isRouted},
		"all of them": {
			bridged, append(plugins(portmap("iptables"), limits, object{"type": "firewall", "backend": "iptables"}, object{"type": "loopback"}), tuning),
			hostPort, nil, func(s *site, t *testing.T) { s.isPublished(t); s.isLimited(t); isTuned(s, t) },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := tt.site(t)
			if tt.prepare != nil {
				tt.prepare(s, t)
			}
			chain := append(s.before, s.plugin)
			for _, plugin := range tt.after {
				chain = append(chain, plugin(t))
			}
			list := newList(t, chain...)
			s.pod.conf.CapabilityArgs = tt.capabilities
			s.add(t, list)
			tt.is(s, t)
			s.node.check(t, list, s.pod)
			s.node.del(t, list, s.pod)
			s.node.del(t, list, s.pod)
			s.isGone(t)
		})
	}
}

// site is a node, the network outside and a pod.
type site struct {
	node    *node
	pod     pod
	outside *netns.NS
	nodes   []netip.Addr // addresses of the node that outside reaches
	others  []netip.Addr // addresses of outside
	before  []object     // the plugins before Fairlead
	plugin  object       // Fairlead's configuration
	addrs   []netip.Addr // addresses of the pod, after ADD; of each family one, as the others
}

func newSite(t *testing.T, plugin object) *site {
	t.Helper()
	s := &site{node: newNode(t), pod: newPod(t, "pod"), outside: netns.NewT(t), plugin: plugin}
	s.plugin["type"] = "fairlead-cni"
	s.plugin["ipam"] = object{"type": "fairlead-ipam", "dataDir": t.TempDir(), "ranges": [][]object{
		{{"subnet": "10.9.0.0/24", "rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.9"}}, {{"subnet": "fd09::/64"}},
	}}
	for _, ns := range []*netns.NS{s.node.ns, s.outside} {
		// A router sends no neighbour solicitation before its link-local address has
		// passed duplicate address detection, which takes a second.
		ns.RunT(t, "sysctl", "-q", "net.ipv6.conf.default.accept_dad=0")
	}
	s.node.ns.RunT(t, "ip", "link", "add", "eth0", "up", "type", "veth", "peer", "name", "wire0", "netns", s.outside.Path())
	s.outside.RunT(t, "ip", "link", "set", "wire0", "up")
	return s
}

// add has the pod attached, and learns its addresses.
func (s *site) add(t *testing.T, list *libcni.NetworkConfigList) {
	t.Helper()
	result := s.node.add(t, list, s.pod)
	if len(s.before) != 0 && result.Interfaces[0].Name != "lo" {
		t.Errorf("the first interface of the result is %s, want that of the plugin before, lo", result.Interfaces[0].Name)
	}
	for _, ip := range result.IPs {
		addr, _ := netip.AddrFromSlice(ip.Address.IP)
		if result.Interfaces[*ip.Interface].Name == "eth0" {
			s.addrs = append(s.addrs, addr.Unmap())
		}
	}
}

// bridged has the pod behind a bridge, and the node for its router.
func bridged(t *testing.T) *site {
	s := newSite(t, object{"isDefaultGateway": true})
	for _, addr := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		s.nodes = append(s.nodes, addAddr(t, s.node.ns, "eth0", addr))
	}
	for _, addr := range []string{"192.0.2.2/24", "2001:db8::2/64"} {
		s.others = append(s.others, addAddr(t, s.outside, "wire0", addr))
	}
	s.outside.RunT(t, "ip", "route", "add", "10.9.0.0/24", "via", "192.0.2.1")
	s.outside.RunT(t, "ip", "route", "add", "fd09::/64", "via", "2001:db8::1")
	return s
}

// onTheWire has the pod on the network outside, and a router there.
func onTheWire(t *testing.T) *site {
	s := newSite(t, object{"mode": "macvlan", "master": "eth0"})
	s.plugin["ipam"].(object)["routes"] = []object{{"dst": "0.0.0.0/0"}, {"dst": "::/0"}}
	for _, addr := range []string{"10.9.0.1/24", "fd09::1/64"} {
		s.others = append(s.others, addAddr(t, s.outside, "wire0", addr))
	}
	return s
}

func addAddr(t *testing.T, ns *netns.NS, device, addr string) netip.Addr {
	t.Helper()
	ns.RunT(t, "ip", "addr", "add", addr, "dev", device, "nodad")
	return netip.MustParsePrefix(addr).Addr()
}

func plugins(fixed ...object) []func(*testing.T) object {
	var made []func(*testing.T) object
	for _, plugin := range fixed {
		made = append(made, func(*testing.T) object { return plugin })
	}
	return made
}

func portmap(backend string) object {
	return object{"type": "portmap", "backend": backend, "capabilities": object{"portMappings": true}}
}

var hostPort = map[string]any{"portMappings": []object{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}}

// isPublished has outside reach the pod by a port of the node.
func (s *site) isPublished(t *testing.T) {
	for i, addr := range s.nodes {
		connect(t, s.outside, netip.AddrPortFrom(addr, 8080), s.pod.ns, netip.AddrPortFrom(s.addrs[i], 80))
	}
}

// isLimited looks for the queues: that of the pod's port, and that of the
// interface that takes what comes from the pod.
func (s *site) isLimited(t *testing.T) {
	queues := s.node.ns.RunT(t, "tc", "qdisc", "show")
	if n := strings.Count(queues, "qdisc tbf"); n != 2 || !strings.Contains(queues, "rate 8Mbit") {
		t.Errorf("%d limits, want 2:\n%s", n, queues)
	}
	s.isReachable(t)
}

// isRouted looks for the rule by which what has the pod's address goes by a table
// of its own.
func (s *site) isRouted(t *testing.T) {
	s.says(t, s.pod.ns, "from 10.9.0.9 lookup 100", "ip", "rule")
	s.says(t, s.pod.ns, "default via 10.9.0.1 dev eth0", "ip", "route", "show", "table", "100")
	s.answers(t)
}

// loopbackFirst has a plugin come before, whose interface and addresses are then
// the first of the result.
func (s *site) loopbackFirst(*testing.T) { s.before = []object{{"type": "loopback"}} }

// dropAll has the node forward nothing that no rule lets through.
func (s *site) dropAll(t *testing.T) {
	s.node.ns.RunT(t, "iptables", "-P", "FORWARD", "DROP")
	s.node.ns.RunT(t, "ip6tables", "-P", "FORWARD", "DROP")
}

// isReachable has pod and outside connect to each other.
func (s *site) isReachable(t *testing.T) {
	s.answers(t)
	s.reachesOutside(t)
	loopback := netip.MustParseAddrPort("127.0.0.1:80")
	connect(t, s.pod.ns, loopback, s.pod.ns, loopback)
}

func (s *site) answers(t *testing.T) {
	for _, addr := range s.addrs {
		connect(t, s.outside, netip.AddrPortFrom(addr, 80), s.pod.ns, netip.AddrPortFrom(addr, 80))
	}
}

func (s *site) reachesOutside(t *testing.T) {
	for _, addr := range s.others {
		connect(t, s.pod.ns, netip.AddrPortFrom(addr, 80), s.outside, netip.AddrPortFrom(addr, 80))
	}
}

// says runs a command and looks for a part of what it prints.
func (s *site) says(t *testing.T, ns *netns.NS, part, name string, args ...string) {
	t.Helper()
	if out := ns.RunT(t, name, args...); !strings.Contains(out, part) {
		t.Errorf("%s %v does not say %q:\n%s", name, args, part, out)
	}
}

// isGone looks for what the pod had after DEL, and takes its address, the only
// one, for another pod.
func (s *site) isGone(t *testing.T) {
	if links := s.pod.ns.RunT(t, "ip", "-brief", "link"); strings.Contains(links, "eth0") {
		t.Errorf("the pod has its interface still:\n%s", links)
	}
	if links := s.node.ns.RunT(t, "ip", "-brief", "link"); strings.Contains(links, "veth") {
		t.Errorf("the node has the other end still:\n%s", links)
	}
	s.node.add(t, newList(t, s.plugin), newPod(t, "next"))
}

// connect opens a TCP connection in one namespace to an address at which another
// one, listening at its own, accepts it.
func connect(t *testing.T, from *netns.NS, dial netip.AddrPort, to *netns.NS, listen netip.AddrPort) {
	t.Helper()
	var server net.Listener
	err := to.Do(func() (err error) {
		server, err = net.Listen("tcp", listen.String())
		return err
	})
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = server.Close() }()
	err = from.Do(func() error {
		client, err := net.DialTimeout("tcp", dial.String(), patience)
		if err == nil {
			err = client.Close()
		}
		return err
	})
	if err != nil {
		t.Errorf("connect to %s, which is %s: %v", dial, listen, err)
	}
}
