package service

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// openService is webService on every kind of address, under the policy Local for those
// outside the cluster.
func openService() *Service {
	s := webService()
	s.ExternalIPs = []netip.Addr{netip.MustParseAddr("198.51.100.7")}
	s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("198.51.100.8")}
	s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	s.ExternalLocal = true
	s.Ports[0].NodePort = 30080
	return s
}

func TestExplain(t *testing.T) {
	onNode := func(e Endpoint, node string) Endpoint { e.Node = node; return e }
	r := resolver([]*Service{openService()}, []*Slice{webSlice("a",
		onNode(ready("10.244.1.2"), "n1"),
		onNode(ready("10.244.2.2"), "n2"),
		Endpoint{Addr: netip.MustParseAddr("10.244.2.3")},
		Endpoint{Addr: netip.MustParseAddr("10.244.2.4"), Serving: true, Terminating: true},
	)})
	tests := []struct {
		name, src, dst string
		want           Explanation
	}{
		{"pod to cluster IP", "10.244.1.2", "10.96.0.10:80", Explanation{
			Verdict: Forward, Class: FromPod,
			Sender:      "a pod: in 10.244.1.0/24",
			Destination: "the cluster IP of default/web:http",
			Policy:      "internalTrafficPolicy Cluster: endpoints of all nodes",
			Choice:      "2 of 4: ready ones",
			Masquerade:  "no: pods reach cluster IPs with their own address",
			Endpoints: []Fate{
				{Addr: netip.MustParseAddrPort("10.244.1.2:8080"), Node: "n1", Turns: true, Masquerade: true},
				{Addr: netip.MustParseAddrPort("10.244.2.2:8080"), Node: "n2", Turns: true},
				{Addr: netip.MustParseAddrPort("10.244.2.3:8080"), Why: "not ready"},
				{Addr: netip.MustParseAddrPort("10.244.2.4:8080"), Why: "terminates; flows that it has go on"},
			},
		}},
		{"outside to node port", "203.0.113.9", "192.168.0.1:30080", Explanation{
			Verdict: Forward, Class: FromOutside,
			Sender:      "outside: neither an address of this node nor in 10.244.1.0/24",
			Destination: "the node port of default/web:http",
			Policy:      "externalTrafficPolicy Local: endpoints of this node only",
			Choice:      "1 of 4: ready ones",
			Masquerade:  "no: externalTrafficPolicy Local keeps the sender's address",
			Endpoints: []Fate{
				{Addr: netip.MustParseAddrPort("10.244.1.2:8080"), Node: "n1", Turns: true},
				{Addr: netip.MustParseAddrPort("10.244.2.2:8080"), Node: "n2", Why: "on another node"},
				{Addr: netip.MustParseAddrPort("10.244.2.3:8080"), Why: "not ready"},
				{Addr: netip.MustParseAddrPort("10.244.2.4:8080"), Why: "terminates; flows that it has go on"},
			},
		}},
		{"outside to load balancer, refused", "192.0.2.1", "198.51.100.8:80", Explanation{
			Verdict: Drop, Class: FromOutside,
			Sender:      "outside: neither an address of this node nor in 10.244.1.0/24",
			Destination: "a load-balancer IP of default/web:http",
			Sources:     "refused: 192.0.2.1 is in none of the source ranges 203.0.113.0/24",
			Policy:      "externalTrafficPolicy Local: endpoints of this node only",
			Choice:      "1 of 4: ready ones",
			Endpoints: []Fate{
				{Addr: netip.MustParseAddrPort("10.244.1.2:8080"), Node: "n1", Why: "the sender is refused"},
				{Addr: netip.MustParseAddrPort("10.244.2.2:8080"), Node: "n2", Why: "on another node"},
				{Addr: netip.MustParseAddrPort("10.244.2.3:8080"), Why: "not ready"},
				{Addr: netip.MustParseAddrPort("10.244.2.4:8080"), Why: "terminates; flows that it has go on"},
			},
		}},
		{"no port", "127.0.0.1", "10.96.0.10:0", Explanation{
			Verdict: Pass, Class: FromNode,
			Sender:      "this node: a loopback address",
			Destination: "a Service's address: ask for one of its ports, 80/tcp of default/web:http",
		}},
		{"another port", "127.0.0.1", "10.96.0.10:81", Explanation{
			Verdict: Pass, Class: FromNode,
			Sender:      "this node: a loopback address",
			Destination: "a Service's address, but not port 81/tcp; there is 80/tcp of default/web:http",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want.Verdict != Pass {
				tt.want.Origin = Origin{Service: Name{Namespace: "default", Name: "web"}, Port: "http"}
			}
			got := r.Explain(Packet{Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddrPort(tt.dst), Protocol: TCP})
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// What Explain says is what Lookup says, for every sender and destination under
// every policy.
func TestExplainAgreesWithLookup(t *testing.T) {
	for policies := range 4 {
		svc := openService()
		svc.InternalLocal, svc.ExternalLocal = policies&1 != 0, policies&2 != 0
		for _, node := range []string{"", "n1", "n2"} {
			e := ready("10.244.1.2")
			e.Node = node
			r := resolver([]*Service{svc}, []*Slice{webSlice("a", e)})
			for _, src := range []string{"10.244.1.2", "10.244.1.9", "127.0.0.1", "192.168.0.1", "203.0.113.9", "192.0.2.1"} {
				for _, dst := range []string{"10.96.0.10:80", "198.51.100.7:80", "198.51.100.8:80", "192.168.0.1:30080", "10.96.0.10:1"} {
					explainAgrees(t, r, Packet{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddrPort(dst), Protocol: TCP})
				}
			}
		}
	}
}

func explainAgrees(t *testing.T, r *Resolver, p Packet) {
	t.Helper()
	d, e := r.Table().Lookup(p), r.Explain(p)
	if e.Verdict != d.Verdict {
		t.Errorf("%v: verdict %v, Lookup says %v", p, e.Verdict, d.Verdict)
	}
	var turns []netip.AddrPort
	for _, fate := range e.Endpoints {
		if fate.Turns {
			turns = append(turns, fate.Addr)
			if fate.Masquerade != d.Masquerades(fate.Addr) {
				t.Errorf("%v: masquerade towards %s: %v", p, fate.Addr, fate.Masquerade)
			}
		}
	}
	if !slices.Equal(turns, d.Backends) {
		t.Errorf("%v: turns %v, Lookup says %v", p, turns, d.Backends)
	}
}
