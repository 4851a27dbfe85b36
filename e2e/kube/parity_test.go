package kube_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/proxytest"
	"github.com/fairlead/fairlead/proxy/service"
)

// departures are where kube-proxy does not do what the behaviours of proxytest
// say. That it draws backends where Fairlead has them take turns is in
// proxytest.Contender. Two differences do not show here: kube-proxy refuses TCP by
// ICMP port unreachable, Fairlead by a reset, and a client reads ECONNREFUSED of
// both; kube-proxy says that it is healthy before it has programmed anything.
var departures = []proxytest.Departure{
	{
		Behaviour: "source ranges say who may use the load balancer", Step: 3, From: "outside", To: "198.51.100.1:80",
		Answer: "a* c*",
		Reason: "kube-proxy takes ranges of the other family only for none at all, which opens what the user has closed",
	}, {
		Behaviour: "source ranges say who may use the load balancer", Step: 4, From: "client", To: "198.51.100.1:80",
		Answer: "reject",
		Reason: "without endpoints kube-proxy answers also those whom the source ranges shut out",
	},
}

// omitted are behaviours that cannot be had with an API server.
var omitted = map[string]string{
	"of two Services with one address the older has it until it goes": "the API server gives no cluster IP twice; for other addresses kube-proxy has no rule",
	"source ranges are for node ports too if the operator says so":    "kube-proxy cannot be told so",
	"pods are known by their interfaces":                              "kube-proxy knows one name or one prefix, and none that all pods of this node have",
}

// TestParity has Fairlead and kube-proxy follow one API server, on one
// configuration file, and both must answer real packets as the table of behaviours
// says.
func TestParity(t *testing.T) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			t.Parallel() // each with an API server of its own
			compete(t, variant)
		})
	}
}

func compete(t *testing.T, variant string) {
	api := startAPI(t)
	fairlead := filepath.Join(programs.Dir(t), "fairlead")
	proxytest.Beside(t, api.Apply, omitted,
		proxytest.Contender{Name: "fairlead", Start: func(t *testing.T, node *netns.NS, config service.Config) {
			keep(t)(kube.StartFairlead(node, fairlead, kube.KubeProxyConfig(config, api.reach(t, node)), variant, t.TempDir()))
		}},
		proxytest.Contender{Name: "kube-proxy", Draws: true, Departures: departures, Start: func(t *testing.T, node *netns.NS, config service.Config) {
			keep(t)(kube.StartKubeProxy(t.Context(), node, kube.KubeProxyConfig(config, api.reach(t, node)), variant, t.TempDir()))
		}})
}

// keep returns a function that takes care that a process is there as long as the
// test lasts. If the test fails it shows the end of the process's log.
func keep(t *testing.T) func(*kube.Process, error) *kube.Process {
	return func(p *kube.Process, err error) *kube.Process {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Log(p.Said())
			}
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		})
		return p
	}
}

// api is an API server in a namespace of its own that others are linked to.
type api struct {
	*kube.Server
	ns    *netns.NS
	links int
}

var apiAddr = netip.MustParseAddr("172.31.0.1")

func startAPI(t testing.TB) *api {
	t.Helper()
	ns := netns.NewT(t)
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	ns.RunT(t, "ip", "address", "add", apiAddr.String()+"/32", "dev", "lo")
	server, err := kube.Start(context.Background(), ns, apiAddr, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return &api{Server: server, ns: ns}
}

// reach links a node to the API server and returns a kubeconfig file for it.
func (a *api) reach(t testing.TB, node *netns.NS) string {
	t.Helper()
	a.links++
	name, near, far := fmt.Sprintf("node-%d", a.links), fmt.Sprintf("172.31.%d.1", a.links), fmt.Sprintf("172.31.%d.2", a.links)
	a.ns.RunT(t, "ip", "link", "add", name, "type", "veth", "peer", "name", "api", "netns", node.Path())
	a.ns.RunT(t, "ip", "address", "add", near+"/24", "dev", name)
	a.ns.RunT(t, "ip", "link", "set", name, "up")
	node.RunT(t, "ip", "address", "add", far+"/24", "dev", "api")
	node.RunT(t, "ip", "link", "set", "api", "up")
	node.RunT(t, "ip", "route", "add", apiAddr.String(), "via", near)
	kubeconfig, err := a.Kubeconfig(6443)
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}
