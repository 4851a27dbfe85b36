package bpf_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/proxytest"
	"github.com/fairlead/fairlead/proxy/service"
)

// TestBegin has somebody outside connect all the time while links get their programs, one
// after the other. Each connection is refused or answered: nobody needs to ask twice,
// because a link does not know a flow that began at another.
func TestBegin(t *testing.T) {
	place := proxytest.NewPlace(t)
	nodePort := netip.AddrPortFrom(proxytest.NodeObject().Addresses[0], 30080)
	ctx, stop := context.WithCancel(t.Context())
	var answered atomic.Int64
	ended := make(chan error)
	go func() {
		ended <- place.From("outside", func() error {
			for ctx.Err() == nil {
				conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(nodePort))
				if err == nil {
					_ = conn.Close()
					answered.Add(1)
				}
			}
			return nil
		})
	}()

	var backend *bpf.Backend
	err := place.Node().Do(func() (err error) {
		backend, err = bpf.New(bpf.Config{Root: filepath.Join(t.TempDir(), "bpf"), CgroupRoot: cgroup.NewT(t).Path})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := backend.Cleanup(context.Background()); err != nil {
			t.Error(err)
		}
	})
	resolver := service.NewResolver(service.Config{NodeName: proxytest.NodeObject().Name})
	change := resolver.Apply(exposed(nodePort.Port(), place.Server("a"), place.Server("b"), place.Server("c")))
	if err := backend.Sync(ctx, resolver.Table(), change); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); answered.Load() < 100; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections were answered in a minute", answered.Load())
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if twice := sentTwice(t, place); twice != "0" {
		t.Errorf("%s SYNs had to be sent again", twice)
	}
}

// exposed is a Service with a node port and an endpoint at each address.
func exposed(nodePort uint16, at ...netip.AddrPort) service.Update {
	name := service.Name{Namespace: "default", Name: "web"}
	node := proxytest.NodeObject()
	s := &service.Slice{Name: name, Service: name.Name, Ports: []service.Port{{Protocol: service.TCP, Number: at[0].Port()}}}
	for _, a := range at {
		s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: a.Addr(), Ready: true, Serving: true})
	}
	return service.Update{
		Nodes: map[string]*service.Node{node.Name: node},
		Services: map[service.Name]*service.Service{name: {
			Name: name, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Ports: []service.ServicePort{{Port: service.Port{Protocol: service.TCP, Number: 80}, NodePort: nodePort}},
		}},
		Slices: map[service.Name]*service.Slice{name: s},
	}
}

// sentTwice is how often the kernel of outside sent a SYN again (TCPSynRetrans).
func sentTwice(t *testing.T, place proxytest.Place) string {
	t.Helper()
	var text []byte
	err := place.From("outside", func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/netstat")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n") // names and values of TcpExt come first
	values := strings.Fields(lines[1])
	for i, name := range strings.Fields(lines[0]) {
		if name == "TCPSynRetrans" {
			return values[i]
		}
	}
	t.Fatalf("no TCPSynRetrans in %s", text)
	return ""
}
