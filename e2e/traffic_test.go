package e2e

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
)

// cluster is a lab with a client on node-1 and a Service of three pods.
type cluster struct{ *labtest.Cluster }

// modes are those of the proxies, with each iptables.
var modes = []string{"iptables-nft", "iptables-legacy", "ebpf"}

func newCluster(t *testing.T, nodes int, mode string) cluster {
	t.Helper()
	return newClusterOf(t, options(t, nodes, mode))
}

// options are those of a lab whose proxies work in a mode.
func options(t *testing.T, nodes int, mode string) lab.Options {
	t.Helper()
	o := lab.Options{Nodes: nodes, BinDir: programs.Dir(t)}
	var variant string
	if o.Mode, variant, _ = strings.Cut(mode, "-"); variant != "" {
		o.ProxyFlags = []string{"--iptables-variant", variant}
	}
	return o
}

func newClusterOf(t *testing.T, opts lab.Options) cluster {
	t.Helper()
	return cluster{labtest.NewCluster(t, opts)}
}

// checkSpread checks that of connections in a row each backend answers as many.
func (c cluster) checkSpread(t *testing.T) {
	t.Helper()
	for _, vip := range c.VIPs {
		got := map[string]int{}
		for range 12 {
			reply, err := c.Client.Ask(t.Context(), vip)
			if err != nil {
				t.Fatal(err)
			}
			got[reply.Name]++
		}
		if diff := cmp.Diff(map[string]int{"web-1": 4, "web-2": 4, "web-3": 4}, got); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", vip.Network, vip.Addr, diff)
		}
	}
}

func TestSpreadIsExact(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { newCluster(t, 2, mode).checkSpread(t) })
	}
}

// The rules outlive the process that made them.
func TestTrafficGoesOnWithoutProxies(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 2, mode)
			for _, n := range c.State().Nodes {
				kill(t, n.Proxy)
			}
			c.checkSpread(t)
		})
	}
}

// What arrives in a backend comes from the client's own address, on the wire as
// well as in what the server says: on the client's node and across nodes.
func TestBackendSeesClientAddress(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) { newCluster(t, 2, mode).checkAddresses(t) })
	}
}

func (c cluster) checkAddresses(t *testing.T) {
	for _, server := range c.Web[:2] {
		t.Run(server.Node.Name, func(t *testing.T) {
			packets := capture(t, server.NS())
			for _, vip := range c.VIPs {
				for range c.Web {
					if _, err := c.Client.Ask(t.Context(), vip); err != nil {
						t.Fatal(err)
					}
				}
			}
			got := map[flow]bool{}
			for _, f := range packets() {
				if f.dst.Port() == lab.PodPort {
					got[f] = true
				}
			}
			want := map[flow]bool{}
			for _, at := range server.Endpoints() {
				src := c.Client.IPv4()
				if at.Addr.Addr().Is6() {
					src = c.Client.IPv6()
				}
				want[flow{at.Network, src, at.Addr}] = true
			}
			if len(got) != len(want) {
				t.Errorf("got %v, want %v", got, want)
			}
			for f := range want {
				if !got[f] {
					t.Errorf("no packet of %v in %v", f, got)
				}
			}
		})
	}
}
