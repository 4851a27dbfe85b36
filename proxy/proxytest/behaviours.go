package proxytest

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// behaviour is something that a user may rely on: a cluster that changes step by
// step, and what becomes of flows after each step.
type behaviour struct {
	name     string
	config   service.Config
	ipv4Only bool
	many     bool // objects: with an API server it is tried over one protocol only
	steps    []step
}

type step struct {
	objects []object
	flows   []flow
}

// flow is what a party gets who asks an address at a port: see describe for the
// words of want.
type flow struct {
	from string
	to   target
	port uint16
	want string
}

// target is an address in the family that is tried.
type target func(v variant) netip.Addr

// vip is the cluster IP number n, lbIP a load balancer's and extIP an external
// IP of that number.
func vip(n int) target {
	return func(v variant) netip.Addr { return v.numbered("10.96.0.", "fd00:10:96::", n) }
}
func lbIP(n int) target {
	return func(v variant) netip.Addr { return v.numbered("198.51.100.", "2001:db8:51::", n) }
}
func extIP(n int) target {
	return func(v variant) netip.Addr { return v.numbered("192.0.2.", "2001:db8:2::", n) }
}

// localhost is the address that the node has for itself.
func localhost(v variant) netip.Addr {
	return v.numbered("127.0.0.", "::", 1)
}

// podInterfaces are those of the pods of the node: two by name, a prefix for
// client.
func podInterfaces() []string { return []string{"a", "b", "cl+"} }

// outsideIP is the address of the host outside, nodeIP the node's own.
func outsideIP(v variant) netip.Addr { return v.addr("outside") }
func nodeIP(v variant) netip.Addr    { return v.addr("node") }

// behaviours hold for every protocol and both families alike.
var behaviours = []behaviour{
	{
		name: "the endpoints of all slices take turns, for all senders",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), ready("b")), slice("web-2", "web", ready("c"))},
			flows: []flow{
				{"client", vip(10), 80, "a b c"},
				{"node", vip(10), 80, "a* b* c*"},
				{"outside", vip(10), 80, "a* b* c*"},
			},
		}},
	},
	{
		name: "one endpoint",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("c"))},
			flows:   []flow{{"client", vip(10), 80, "c"}},
		}},
	},
	{
		name: "a pod reaches itself",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), ready("b"))},
			flows:   []flow{{"a", vip(10), 80, "a* b"}, {"b", vip(10), 80, "a b*"}},
		}},
	},
	{
		name: "without an endpoint flows are refused",
		steps: []step{{
			objects: []object{svc("web", 10)},
			flows:   []flow{{"client", vip(10), 80, "reject"}, {"node", vip(10), 80, "reject"}, {"outside", vip(10), 80, "reject"}},
		}},
	},
	{
		name: "a slice without its Service is nothing, and neither is a Service without a cluster IP",
		steps: []step{{
			objects: []object{slice("web-1", "web", ready("a")), headless("headless")},
			flows:   []flow{{"client", vip(10), 80, "pass"}},
		}},
	},
	{
		name: "another port of the address is nobody's",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"))},
			flows:   []flow{{"client", vip(10), 81, "pass"}, {"client", vip(10), 80, "a"}},
		}},
	},
	{
		name: "endpoints that are not ready get no flow",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), unready("b"))},
			flows:   []flow{{"client", vip(10), 80, "a"}},
		}},
	},
	{
		name: "terminating endpoints that serve are the last resort",
		steps: []step{
			{
				objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), leaving("b"))},
				flows:   []flow{{"client", vip(10), 80, "a"}},
			},
			{
				objects: []object{slice("web-1", "web", unready("a"), leaving("b"))},
				flows:   []flow{{"client", vip(10), 80, "b"}},
			},
		},
	},
	{
		name: "each port of a Service has endpoint ports of its own",
		steps: []step{{
			objects: []object{svc("web", 10, namedPort("http", 80), namedPort("admin", 81)),
				slicePorts(map[string]uint16{"http": servicePort, "admin": otherPort}, "web-1", "web", ready("a"), ready("b"))},
			flows: []flow{{"client", vip(10), 80, "a b"}, {"client", vip(10), 81, "a:9090 b:9090"}},
		}},
	},
	{
		name: "of two Services with one address the older has it until it goes",
		steps: []step{
			{
				objects: []object{svc("young", 10, createdAt(2)), slice("young-1", "young", ready("a")),
					svc("zold", 10, createdAt(1)), slice("zold-1", "zold", ready("b"))},
				flows: []flow{{"client", vip(10), 80, "b"}},
			},
			{
				objects: []object{gone("zold")},
				flows:   []flow{{"client", vip(10), 80, "a"}},
			},
		},
	},
	{
		name: "endpoints come and go",
		steps: []step{
			{
				objects: []object{svc("web", 10), slice("web-1", "web", ready("a"))},
				flows:   []flow{{"client", vip(10), 80, "a"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("a"), ready("b"), ready("c"))},
				flows:   []flow{{"client", vip(10), 80, "a b c"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("c"))},
				flows:   []flow{{"client", vip(10), 80, "c"}},
			},
			{
				objects: []object{slice("web-1", "web")},
				flows:   []flow{{"client", vip(10), 80, "reject"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("b"))},
				flows:   []flow{{"client", vip(10), 80, "b"}},
			},
			{
				objects: []object{gone("web")},
				flows:   []flow{{"client", vip(10), 80, "pass"}},
			},
		},
	},
	{
		name: "node ports, external IPs and load balancers lead to all endpoints",
		steps: []step{{
			objects: []object{svc("web", 10, nodePort(30080), at(extIP(1)), balanced(lbIP(1))), slice("web-1", "web", ready("a"), ready("c"))},
			flows: []flow{
				{"outside", nodeIP, 30080, "a* c*"},
				{"client", nodeIP, 30080, "a* c*"},
				{"node", nodeIP, 30080, "a* c*"},
				{"outside", extIP(1), 80, "a* c*"},
				{"client", extIP(1), 80, "a* c*"},
				{"outside", lbIP(1), 80, "a* c*"},
				{"node", lbIP(1), 80, "a* c*"},
				{"client", vip(10), 80, "a c"},
				{"client", outsideIP, 30080, "pass"}, // a node port is the node's alone
			},
		}},
	},
	{
		name: "without an endpoint they refuse",
		steps: []step{{
			objects: []object{svc("web", 10, nodePort(30080), balanced(lbIP(1))), slice("web-1", "web")},
			flows:   []flow{{"outside", nodeIP, 30080, "reject"}, {"outside", lbIP(1), 80, "reject"}, {"client", nodeIP, 30080, "reject"}},
		}},
	},
	{
		name: "external policy Local keeps outsiders on this node, with their address",
		steps: []step{
			{
				objects: []object{svc("web", 10, nodePort(30080), balanced(lbIP(1)), externalLocal), slice("web-1", "web", ready("a"), ready("c"))},
				flows: []flow{
					{"outside", nodeIP, 30080, "a"},
					{"outside", lbIP(1), 80, "a"},
					{"client", lbIP(1), 80, "a c"},
					{"node", lbIP(1), 80, "a* c*"},
					{"client", vip(10), 80, "a c"},
				},
			},
			{ // only remote endpoints: the load balancer should not have asked here
				objects: []object{slice("web-1", "web", ready("c"))},
				flows:   []flow{{"outside", lbIP(1), 80, "drop"}, {"outside", nodeIP, 30080, "drop"}, {"client", lbIP(1), 80, "c"}, {"node", lbIP(1), 80, "c*"}},
			},
			{ // the fall-back to terminating endpoints is each policy's own
				objects: []object{slice("web-1", "web", leaving("a"), ready("c"))},
				flows:   []flow{{"outside", lbIP(1), 80, "a"}, {"client", lbIP(1), 80, "c"}},
			},
			{
				objects: []object{slice("web-1", "web")},
				flows:   []flow{{"outside", lbIP(1), 80, "reject"}, {"client", lbIP(1), 80, "reject"}},
			},
		},
	},
	{
		name: "internal policy Local keeps flows on this node",
		steps: []step{
			{
				objects: []object{svc("web", 10, internalLocal, nodePort(30080)), slice("web-1", "web", ready("a"), ready("c"))},
				flows:   []flow{{"client", vip(10), 80, "a"}, {"outside", vip(10), 80, "a*"}, {"outside", nodeIP, 30080, "a* c*"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("c"))},
				flows:   []flow{{"client", vip(10), 80, "drop"}, {"client", nodeIP, 30080, "c*"}},
			},
			{
				objects: []object{slice("web-1", "web", unready("c"))},
				flows:   []flow{{"client", vip(10), 80, "reject"}},
			},
		},
	},
	{
		name: "source ranges say who may use the load balancer",
		steps: []step{
			{
				objects: []object{svc("web", 10, nodePort(30080), balanced(lbIP(1)), allowed("203.0.113.0/24", "2001:db8::/64")), slice("web-1", "web", ready("a"), ready("c"))},
				flows: []flow{
					{"outside", lbIP(1), 80, "a* c*"},
					{"client", lbIP(1), 80, "drop"},
					{"node", lbIP(1), 80, "drop"},
					{"client", nodeIP, 30080, "a* c*"},
					{"client", vip(10), 80, "a c"},
				},
			},
			{
				objects: []object{svc("web", 10, balanced(lbIP(1)), allowed("192.168.50.0/24", "fd00:50::/64", "203.0.113.8/29", "2001:db8::8/125"), externalLocal)},
				flows:   []flow{{"outside", lbIP(1), 80, "a"}, {"node", lbIP(1), 80, "a* c*"}, {"client", lbIP(1), 80, "drop"}},
			},
			{ // nobody of either family is in these
				objects: []object{svc("web", 10, balanced(lbIP(1)), otherFamilyOnly)},
				flows:   []flow{{"outside", lbIP(1), 80, "drop"}, {"client", vip(10), 80, "a c"}},
			},
			{
				objects: []object{svc("web", 10, balanced(lbIP(1)), allowed("203.0.113.0/24", "2001:db8::/64")), slice("web-1", "web")},
				flows:   []flow{{"outside", lbIP(1), 80, "reject"}, {"client", lbIP(1), 80, "drop"}},
			},
		},
	},
	{
		name: "with affinity a client stays with its endpoint",
		steps: []step{{
			objects: []object{svc("web", 10, affinity(time.Hour), nodePort(30080)), slice("web-1", "web", ready("a"), ready("b"), ready("c"))},
			flows:   []flow{{"client", vip(10), 80, "a|b|c"}, {"node", vip(10), 80, "a*|b*|c*"}, {"outside", nodeIP, 30080, "a*|b*|c*"}},
		}},
	},
	{
		name: "hints choose the endpoints of the zone, or of the node, if all have them",
		steps: []step{
			{
				objects: []object{svc("web", 10), slice("web-1", "web", ready("a").forZone("z1"), ready("b").forZone("z1"), ready("c").forZone("z2"))},
				flows:   []flow{{"client", vip(10), 80, "a b"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("a").forZone("z1"), ready("b"), ready("c").forZone("z2"))},
				flows:   []flow{{"client", vip(10), 80, "a b c"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("a").forZone("z2"), ready("c").forZone("z2"))},
				flows:   []flow{{"client", vip(10), 80, "a c"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("a").forZone("z1").forNode("n1"), ready("b").forZone("z1").forNode("n3"), ready("c").forZone("z1").forNode("n2"))},
				flows:   []flow{{"client", vip(10), 80, "a"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("b").forZone("z1").forNode("n3"), ready("c").forZone("z2").forNode("n2"))},
				flows:   []flow{{"client", vip(10), 80, "b"}},
			},
		},
	},
	{
		name:   "source ranges are for node ports too if the operator says so",
		config: service.Config{SourceRangesOnNodePorts: true},
		steps: []step{
			{
				objects: []object{svc("web", 10, nodePort(30080), balanced(lbIP(1)), at(extIP(1)), allowed("203.0.113.0/24", "2001:db8::/64")), slice("web-1", "web", ready("a"), ready("c"))},
				flows: []flow{
					{"outside", nodeIP, 30080, "a* c*"},
					{"client", nodeIP, 30080, "drop"},
					{"node", nodeIP, 30080, "drop"},
					{"outside", lbIP(1), 80, "a* c*"},
					{"client", lbIP(1), 80, "drop"},
					{"client", extIP(1), 80, "a* c*"},
					{"client", vip(10), 80, "a c"},
				},
			},
			{
				objects: []object{svc("web", 10, nodePort(30080), otherFamilyOnly)},
				flows:   []flow{{"outside", nodeIP, 30080, "drop"}, {"client", vip(10), 80, "a c"}},
			},
		},
	},
	{
		name:   "masquerade-all is for cluster IPs, and for all senders",
		config: service.Config{MasqueradeAll: true},
		steps: []step{{
			objects: []object{svc("web", 10, nodePort(30080), externalLocal), slice("web-1", "web", ready("a"), ready("c"))},
			flows: []flow{
				{"client", vip(10), 80, "a* c*"},
				{"node", vip(10), 80, "a* c*"},
				{"outside", vip(10), 80, "a* c*"},
				{"outside", nodeIP, 30080, "a"},
			},
		}},
	},
	{
		name:   "pods are known by the ranges of the cluster",
		config: service.Config{Pods: service.ByClusterCIDR, ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")}},
		steps: []step{{
			objects: []object{svc("web", 10, nodePort(30080), externalLocal), slice("web-1", "web", ready("a"), ready("b"))},
			flows: []flow{
				{"client", vip(10), 80, "a b"},
				{"c", vip(10), 80, "a b"},
				{"outside", vip(10), 80, "a* b*"},
				{"c", nodeIP, 30080, "a b"},
			},
		}},
	},
	{
		name:   "without ranges of the cluster pods are not known, and cluster IPs masquerade nobody",
		config: service.Config{Pods: service.ByClusterCIDR},
		steps: []step{{
			objects: []object{svc("web", 10, nodePort(30080), externalLocal), slice("web-1", "web", ready("a"))},
			flows:   []flow{{"client", vip(10), 80, "a"}, {"outside", vip(10), 80, "a"}},
		}, {
			objects: []object{slice("web-1", "web", ready("c"))},
			flows:   []flow{{"client", nodeIP, 30080, "drop"}, {"node", nodeIP, 30080, "c*"}},
		}},
	},
	{
		name:   "pods are known by their interfaces",
		config: service.Config{Pods: service.ByInterface, PodInterfaces: podInterfaces()},
		steps: []step{{
			objects: []object{svc("web", 10, nodePort(30080), balanced(lbIP(1)), externalLocal), slice("web-1", "web", ready("a"), ready("c"))},
			flows: []flow{
				{"client", vip(10), 80, "a c"},
				{"b", vip(10), 80, "a c"},
				{"c", vip(10), 80, "a* c*"}, // another node's
				{"node", vip(10), 80, "a* c*"},
				{"outside", vip(10), 80, "a* c*"},
				{"client", lbIP(1), 80, "a c"},
				{"outside", lbIP(1), 80, "a"},
			},
		}},
	},
	{
		name:     "node ports are on localhost if the operator says so",
		config:   service.Config{LocalhostNodePorts: true},
		ipv4Only: true,
		steps: []step{
			{
				objects: []object{svc("web", 10, nodePort(30080)), slice("web-1", "web", ready("a"), ready("c"))},
				flows:   []flow{{"node", localhost, 30080, "a* c*"}, {"node", localhost, 30081, "pass"}, {"outside", nodeIP, 30080, "a* c*"}},
			},
			{
				objects: []object{slice("web-1", "web")},
				flows:   []flow{{"node", localhost, 30080, "reject"}},
			},
		},
	},
	{
		name:   "node ports are not on localhost otherwise",
		config: service.Config{NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}},
		steps: []step{{
			objects: []object{svc("web", 10, nodePort(30080)), slice("web-1", "web", ready("a"))},
			flows:   []flow{{"node", localhost, 30080, "pass"}, {"node", nodeIP, 30080, "a*"}},
		}},
	},
	{
		name: "among many Services each finds its own",
		many: true,
		steps: []step{{
			objects: append(many(20, 120), svc("web", 10), slice("web-1", "web", ready("a"), ready("b"))),
			flows:   []flow{{"client", vip(10), 80, "a b"}, {"client", vip(20), 80, "c"}, {"client", vip(77), 80, "c"}, {"client", vip(119), 80, "c"}, {"client", vip(120), 80, "pass"}},
		}},
	},
}

// variant is the family and protocol in which a behaviour is tried.
type variant struct {
	ipv6     bool
	protocol service.Protocol
}

func (v variant) String() string {
	if v.ipv6 {
		return v.protocol.String() + "6"
	}
	return v.protocol.String() + "4"
}

// numbered is the address number n behind the start of the family.
func (v variant) numbered(ipv4, ipv6 string, n int) netip.Addr {
	if v.ipv6 {
		return netip.MustParseAddr(fmt.Sprintf("%s%x", ipv6, n))
	}
	return netip.MustParseAddr(fmt.Sprintf("%s%d", ipv4, n))
}

func (v variant) addr(party string) netip.Addr {
	if v.ipv6 {
		return where[party][1]
	}
	return where[party][0]
}

// object adds an object to an update.
type object func(v variant, u *service.Update)

func named(name string) service.Name { return service.Name{Namespace: "default", Name: name} }

// detail is something of a Service beside its cluster IP.
type detail func(v variant, s *service.Service)

// namedPort is a port of a Service.
func namedPort(name string, number uint16) detail {
	return func(v variant, s *service.Service) {
		s.Ports = append(s.Ports, service.ServicePort{Port: service.Port{Name: name, Protocol: v.protocol, Number: number}})
	}
}

// nodePort is port 80 without a name, and the node port to it.
func nodePort(number uint16) detail {
	return func(v variant, s *service.Service) {
		s.Ports = append(s.Ports, service.ServicePort{Port: service.Port{Protocol: v.protocol, Number: 80}, NodePort: number})
	}
}

func createdAt(hour int) detail {
	return func(_ variant, s *service.Service) { s.Created = time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC) }
}

func at(ip target) detail {
	return func(v variant, s *service.Service) { s.ExternalIPs = append(s.ExternalIPs, ip(v)) }
}

func balanced(ip target) detail {
	return func(v variant, s *service.Service) { s.LoadBalancerIPs = append(s.LoadBalancerIPs, ip(v)) }
}

func allowed(ranges ...string) detail {
	return func(_ variant, s *service.Service) {
		for _, r := range ranges {
			s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix(r).Masked())
		}
	}
}

func otherFamilyOnly(v variant, s *service.Service) {
	s.SourceRanges = []netip.Prefix{netip.PrefixFrom(service.AnyNodeAddr(!v.ipv6), 0)}
}

func externalLocal(_ variant, s *service.Service) { s.ExternalLocal = true }
func internalLocal(_ variant, s *service.Service) { s.InternalLocal = true }

func resetOnRemoval(_ variant, s *service.Service) { s.ResetOnRemoval = true }

func affinity(d time.Duration) detail {
	return func(_ variant, s *service.Service) { s.Affinity = d }
}

// svc is a Service at the cluster IP number n, by default with port 80 without a
// name.
func svc(name string, n int, details ...detail) object {
	return func(v variant, u *service.Update) {
		s := &service.Service{Name: named(name), ClusterIPs: []netip.Addr{vip(n)(v)}}
		for _, d := range details {
			d(v, s)
		}
		if s.Ports == nil {
			nodePort(0)(v, s)
		}
		u.Services[s.Name] = s
	}
}

func headless(name string) object {
	return func(v variant, u *service.Update) {
		u.Services[named(name)] = &service.Service{
			Name:  named(name),
			Ports: []service.ServicePort{{Port: service.Port{Protocol: v.protocol, Number: 80}, NodePort: 30080}},
		}
	}
}

// gone is a Service that is deleted.
func gone(name string) object {
	return func(_ variant, u *service.Update) { u.Services[named(name)] = nil }
}

// endpoint is a party as endpoint of a slice.
type endpoint struct {
	party string
	service.Endpoint
}

func ready(party string) endpoint {
	return endpoint{party, service.Endpoint{Ready: true, Serving: true}}
}
func unready(party string) endpoint { return endpoint{party: party} }
func leaving(party string) endpoint {
	return endpoint{party, service.Endpoint{Serving: true, Terminating: true}}
}

func (e endpoint) forZone(zone string) endpoint {
	e.ForZones = append(e.ForZones, zone)
	return e
}

func (e endpoint) forNode(node string) endpoint {
	e.ForNodes = append(e.ForNodes, node)
	return e
}

// slice is an EndpointSlice of a Service whose port has no name.
func slice(name, of string, endpoints ...endpoint) object {
	return slicePorts(map[string]uint16{"": servicePort}, name, of, endpoints...)
}

// slicePorts is an EndpointSlice with the ports given by name.
func slicePorts(ports map[string]uint16, name, of string, endpoints ...endpoint) object {
	return func(v variant, u *service.Update) {
		s := &service.Slice{Name: named(name), Service: of}
		for port, number := range ports {
			s.Ports = append(s.Ports, service.Port{Name: port, Protocol: v.protocol, Number: number})
		}
		for _, e := range endpoints {
			e.Addr, e.Node = v.addr(e.party), "n1"
			if e.party == "c" {
				e.Node = "n2"
			}
			s.Endpoints = append(s.Endpoints, e.Endpoint)
		}
		u.Slices[s.Name] = s
	}
}

// many are Services at the cluster IPs from one number to before another, all of
// which lead to c.
func many(from, to int) []object {
	var out []object
	for n := from; n < to; n++ {
		name := fmt.Sprintf("many-%d", n)
		out = append(out, svc(name, n), slice(name, name, ready("c")))
	}
	return out
}
