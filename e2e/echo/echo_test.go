package echo

import (
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
)

var networks = []string{"tcp", "udp", "sctp"}

// host is one namespace with an address in each family on lo.
func host(t *testing.T) *netns.NS {
	t.Helper()
	ns := netns.NewT(t)
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	ns.RunT(t, "ip", "addr", "add", "10.0.0.1/32", "dev", "lo")
	ns.RunT(t, "ip", "addr", "add", "fd00::1/128", "dev", "lo", "nodad")
	return ns
}

// serve runs a server of every network at addr and stops it when the test ends.
// It returns the address and port of each network.
func serve(t *testing.T, ns *netns.NS, addr string) map[string]netip.AddrPort {
	t.Helper()
	var at []Endpoint
	for _, network := range networks {
		at = append(at, Endpoint{network, netip.AddrPortFrom(netip.MustParseAddr(addr), 0)})
	}
	var server *Server
	err := ns.Do(func() (err error) {
		server, err = Listen("pod-1", at...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	out := map[string]netip.AddrPort{}
	for _, e := range server.Endpoints() {
		out[e.Network] = e.Addr
	}
	return out
}

func TestAsk(t *testing.T) {
	ns := host(t)
	for _, addr := range []string{"10.0.0.1", "fd00::1"} {
		at := serve(t, ns, addr)
		for _, network := range networks {
			t.Run(network+" "+addr, func(t *testing.T) {
				laddr := netip.AddrPortFrom(netip.MustParseAddr(addr), 40000)
				var got Reply
				err := ns.Do(func() (err error) {
					got, err = Ask(t.Context(), network, laddr, at[network])
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
				if got.ID == "" {
					t.Error("the reply has no id")
				}
				want := Reply{ID: got.ID, Name: "pod-1", Client: laddr, Server: at[network]}
				if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
					t.Errorf("reply (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestAskRefused(t *testing.T) {
	ns := host(t)
	for _, addr := range []string{"10.0.0.1", "fd00::1"} {
		serve(t, ns, addr) // at other ports: the address is alive
		for _, network := range networks {
			t.Run(network+" "+addr, func(t *testing.T) {
				err := ns.Do(func() error {
					_, err := Ask(t.Context(), network, netip.AddrPort{}, netip.AddrPortFrom(netip.MustParseAddr(addr), 9))
					return err
				})
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("got error %v, want connection refused", err)
				}
			})
		}
	}
}
