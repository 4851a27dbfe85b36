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
	name  string
	steps []step
}

type step struct {
	objects []object
	flows   []flow
}

// flow is what a party gets who asks the cluster IP number vip at a port: see
// describe for the words of want.
type flow struct {
	from string
	vip  int
	port uint16
	want string
}

// behaviours hold for every protocol and both families alike.
var behaviours = []behaviour{
	{
		name: "the endpoints of all slices take turns, for all senders",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), ready("b")), slice("web-2", "web", ready("c"))},
			flows: []flow{
				{"client", 10, 80, "a b c"},
				{"node", 10, 80, "a b c"},
				{"outside", 10, 80, "a* b* c*"},
			},
		}},
	},
	{
		name: "one endpoint",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("c"))},
			flows:   []flow{{"client", 10, 80, "c"}},
		}},
	},
	{
		name: "a pod reaches itself",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), ready("b"))},
			flows:   []flow{{"a", 10, 80, "a* b"}, {"b", 10, 80, "a b*"}},
		}},
	},
	{
		name: "without an endpoint flows are refused",
		steps: []step{{
			objects: []object{svc("web", 10)},
			flows:   []flow{{"client", 10, 80, "reject"}, {"node", 10, 80, "reject"}, {"outside", 10, 80, "reject"}},
		}},
	},
	{
		name: "a slice without its Service is nothing, and neither is a Service without a cluster IP",
		steps: []step{{
			objects: []object{slice("web-1", "web", ready("a")), headless("headless")},
			flows:   []flow{{"client", 10, 80, "pass"}},
		}},
	},
	{
		name: "another port of the address is nobody's",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"))},
			flows:   []flow{{"client", 10, 81, "pass"}, {"client", 10, 80, "a"}},
		}},
	},
	{
		name: "endpoints that are not ready get no flow",
		steps: []step{{
			objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), unready("b"))},
			flows:   []flow{{"client", 10, 80, "a"}},
		}},
	},
	{
		name: "terminating endpoints that serve are the last resort",
		steps: []step{
			{
				objects: []object{svc("web", 10), slice("web-1", "web", ready("a"), leaving("b"))},
				flows:   []flow{{"client", 10, 80, "a"}},
			},
			{
				objects: []object{slice("web-1", "web", unready("a"), leaving("b"))},
				flows:   []flow{{"client", 10, 80, "b"}},
			},
		},
	},
	{
		name: "each port of a Service has endpoint ports of its own",
		steps: []step{{
			objects: []object{svc("web", 10, namedPort("http", 80), namedPort("admin", 81)),
				slice("web-1", "web", slicePorts(namedPort("http", servicePort), namedPort("admin", otherPort)), ready("a"), ready("b"))},
			flows: []flow{{"client", 10, 80, "a b"}, {"client", 10, 81, "a:9090 b:9090"}},
		}},
	},
	{
		name: "of two Services with one address the older has it until it goes",
		steps: []step{
			{
				objects: []object{svc("young", 10, createdAt(2)), slice("young-1", "young", ready("a")),
					svc("zold", 10, createdAt(1)), slice("zold-1", "zold", ready("b"))},
				flows: []flow{{"client", 10, 80, "b"}},
			},
			{
				objects: []object{gone("zold")},
				flows:   []flow{{"client", 10, 80, "a"}},
			},
		},
	},
	{
		name: "endpoints come and go",
		steps: []step{
			{
				objects: []object{svc("web", 10), slice("web-1", "web", ready("a"))},
				flows:   []flow{{"client", 10, 80, "a"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("a"), ready("b"), ready("c"))},
				flows:   []flow{{"client", 10, 80, "a b c"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("c"))},
				flows:   []flow{{"client", 10, 80, "c"}},
			},
			{
				objects: []object{slice("web-1", "web")},
				flows:   []flow{{"client", 10, 80, "reject"}},
			},
			{
				objects: []object{slice("web-1", "web", ready("b"))},
				flows:   []flow{{"client", 10, 80, "b"}},
			},
			{
				objects: []object{gone("web")},
				flows:   []flow{{"client", 10, 80, "pass"}},
			},
		},
	},
	{
		name: "among many Services each finds its own",
		steps: []step{{
			objects: append(many(20, 120), svc("web", 10), slice("web-1", "web", ready("a"), ready("b"))),
			flows:   []flow{{"client", 10, 80, "a b"}, {"client", 20, 80, "c"}, {"client", 77, 80, "c"}, {"client", 119, 80, "c"}, {"client", 120, 80, "pass"}},
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

// vip is the cluster IP number n.
func (v variant) vip(n int) netip.Addr {
	if v.ipv6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%x", n))
	}
	return netip.AddrFrom4([4]byte{10, 96, 0, byte(n)})
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

type port struct {
	name   string
	number uint16
}

func namedPort(name string, number uint16) port { return port{name, number} }

// created is when a Service was made.
type created time.Time

func createdAt(hour int) created { return created(time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC)) }

// svc is a Service at the cluster IP number vip; details are ports (none: port
// 80 without a name) and created.
func svc(name string, vip int, details ...any) object {
	return func(v variant, u *service.Update) {
		s := &service.Service{Name: named(name), ClusterIPs: []netip.Addr{v.vip(vip)}}
		for _, d := range details {
			switch d := d.(type) {
			case port:
				s.Ports = append(s.Ports, service.ServicePort{Name: d.name, Protocol: v.protocol, Port: d.number})
			case created:
				s.Created = time.Time(d)
			}
		}
		if s.Ports == nil {
			s.Ports = []service.ServicePort{{Protocol: v.protocol, Port: 80}}
		}
		u.Services[s.Name] = s
	}
}

func headless(name string) object {
	return func(v variant, u *service.Update) {
		u.Services[named(name)] = &service.Service{
			Name:  named(name),
			Ports: []service.ServicePort{{Protocol: v.protocol, Port: 80}},
		}
	}
}

// gone is a Service that is deleted.
func gone(name string) object {
	return func(_ variant, u *service.Update) { u.Services[named(name)] = nil }
}

type endpoint struct {
	party                       string
	ready, serving, terminating bool
}

func ready(party string) endpoint   { return endpoint{party: party, ready: true, serving: true} }
func unready(party string) endpoint { return endpoint{party: party} }
func leaving(party string) endpoint {
	return endpoint{party: party, serving: true, terminating: true}
}

type ports []port

func slicePorts(p ...port) ports { return p }

// slice is an EndpointSlice; details are endpoints and ports (none: servicePort
// without a name).
func slice(name, of string, details ...any) object {
	return func(v variant, u *service.Update) {
		s := &service.Slice{Name: named(name), Service: of}
		for _, d := range details {
			switch d := d.(type) {
			case ports:
				for _, p := range d {
					s.Ports = append(s.Ports, service.SlicePort{Name: p.name, Protocol: v.protocol, Port: p.number})
				}
			case endpoint:
				s.Endpoints = append(s.Endpoints, service.Endpoint{
					Addr: v.addr(d.party), Ready: d.ready, Serving: d.serving, Terminating: d.terminating,
				})
			}
		}
		if s.Ports == nil {
			s.Ports = []service.SlicePort{{Protocol: v.protocol, Port: servicePort}}
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
