package iptables

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/nfacct"
	"github.com/fairlead/fairlead/proxy/service"
)

// Connections are counted exactly, also across changes of their pool and restarts,
// of as many Service ports as there are counters for. Those of Services that are gone
// go too.
func TestConnectionsAreCounted(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		client, server := n.attach("client", "10.0.1"), n.attach("server", "10.0.2")
		n.RunT(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
		listen(t, server, "10.0.2.2:8080")
		n.counters = 1
		n.backend = n.start()
		connect := func(vip string, times int) {
			t.Helper()
			for range times {
				if err := client.Do(func() error {
					conn, err := net.Dial("tcp", vip+":80")
					if err != nil {
						return err
					}
					return conn.Close()
				}); err != nil {
					t.Fatal(err)
				}
			}
		}

		r := service.NewResolver(service.Config{NodeName: "n1"})
		n.mustSync(r.Table(), r.Apply(serverAs("web", "10.96.0.1")))
		n.mustSync(r.Table(), r.Apply(serverAs("late", "10.96.0.2")))
		connect("10.96.0.1", 3)
		connect("10.96.0.2", 2)
		n.wantCounted(map[string]uint64{"default/web": 3})

		n.mustSync(r.Table(), service.Change{Pools: []service.PoolID{{Origin: origin("web")}}})
		connect("10.96.0.1", 1)
		n.backend = n.start()
		n.mustSync(r.Table(), service.Change{Node: true})
		connect("10.96.0.1", 1)
		n.wantCounted(map[string]uint64{"default/web": 5})

		n.mustSync(r.Table(), r.Apply(service.Update{Services: map[service.Name]*service.Service{origin("web").Service: nil}}))
		n.mustSync(r.Table(), service.Change{Pools: []service.PoolID{{Origin: origin("late")}}})
		connect("10.96.0.2", 1)
		n.wantCounted(map[string]uint64{"default/late": 1})

		if err := n.Do(func() error { return n.backend.Cleanup(t.Context()) }); err != nil {
			t.Fatal(err)
		}
		if err := n.Do(func() error {
			left, err := nfacct.List()
			if len(left) > 0 {
				t.Errorf("after Cleanup there are counters: %v", left)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// A connection to a node port on localhost counts once, one to anything else there
// not at all.
func TestLocalhostIsCounted(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		server := n.attach("server", "10.0.2")
		n.RunT(t, "ip", "link", "set", "lo", "up")
		listen(t, server, "10.0.2.2:8080")
		listen(t, n.NS, "127.0.0.1:9000")
		n.counters = 1
		n.backend = n.start()
		r := service.NewResolver(service.Config{NodeName: "n1", LocalhostNodePorts: true})
		update := serverAs("web", "10.96.0.1")
		update.Services[origin("web").Service].Ports[0].NodePort = 30080
		update.Nodes = map[string]*service.Node{"n1": {Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.1")}}}
		n.mustSync(r.Table(), r.Apply(update))
		for _, addr := range []string{"127.0.0.1:30080", "10.0.2.1:30080", "127.0.0.1:9000", "127.0.0.1:30080"} {
			if err := n.Do(func() error {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					return err
				}
				return conn.Close()
			}); err != nil {
				t.Fatal(err)
			}
		}
		if accepted := n.packets().LocalhostAccepted; accepted != 2 {
			t.Errorf("counted: %d, want 2", accepted)
		}
	})
}

// Without the extension Services are served, and it is known why nothing is counted.
func TestNothingIsCounted(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		withoutExtension(t, "libxt_nfacct.so")
		n.counters = 1
		n.backend = n.start()
		if err := n.backend.Uncounted(); err == nil || !strings.Contains(err.Error(), "xt_nfacct") {
			t.Errorf("Uncounted: %v", err)
		}
		r := service.NewResolver(service.Config{NodeName: "n1"})
		n.mustSync(r.Table(), r.Apply(serverAs("web", "10.96.0.1")))
		n.wantCounted(map[string]uint64{})
	})
}

func (n *node) packets() (p Packets) {
	n.t.Helper()
	if err := n.Do(func() (err error) {
		p, err = n.backend.Packets()
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return p
}

func (n *node) wantCounted(want map[string]uint64) {
	n.t.Helper()
	got := map[string]uint64{}
	if err := n.Do(func() error {
		counted, err := n.backend.Connections()
		for o, connections := range counted {
			got[o.String()] = connections
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		n.t.Errorf("connections (-want +got):\n%s", diff)
	}
}

func origin(name string) service.Origin {
	return service.Origin{Service: service.Name{Namespace: "default", Name: name}}
}

// serverAs is a Service at a cluster IP, port 80, whose endpoint is 10.0.2.2:8080.
func serverAs(of, ip string) service.Update {
	name := origin(of).Service
	return service.Update{
		Services: map[service.Name]*service.Service{name: {
			Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)},
			Ports: []service.ServicePort{{Port: service.Port{Protocol: service.TCP, Number: 80}}},
		}},
		Slices: map[service.Name]*service.Slice{name: {
			Name: name, Service: name.Name, Ports: []service.Port{{Protocol: service.TCP, Number: 8080}},
			Endpoints: []service.Endpoint{{Addr: netip.MustParseAddr("10.0.2.2"), Ready: true, Serving: true}},
		}},
	}
}
