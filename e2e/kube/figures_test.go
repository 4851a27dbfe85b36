package kube_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/proxy/proxytest"
	"github.com/fairlead/fairlead/proxy/service"
)

const (
	manyServices  = 10_000
	endpointsEach = 5
	// changesEach is how many changes of an endpoint are measured in a round.
	changesEach = 30
)

// BenchmarkManyServices has Fairlead and kube-proxy follow one API server with
// many Services, in turn, once per iteration. It reports the medians of
//
//	sync-s      from the start of the program until the last of the Services
//	            answers
//	change-ms   from the request to the API server that changes an endpoint until
//	            a connection reaches the new one
//	peak-MiB    resident memory at most, and rss-MiB at the end
//
// kube-proxy with iptables-nft is left out: its first sync takes many minutes.
func BenchmarkManyServices(b *testing.B) {
	api := startAPI(b)
	must(b, api.prepare(b.Context(), proxytest.Node()))
	must(b, fill(b.Context(), api.Server))
	for _, variant := range []string{"legacy", "nft"} {
		b.Run(variant, func(b *testing.B) { measure(b, api, variant) })
	}
}

// contestant starts a proxy on a node.
type contestant func(b *testing.B, api *api, place proxytest.Place, variant string) *kube.Process

func startFairlead(b *testing.B, api *api, place proxytest.Place, variant string) *kube.Process {
	fairlead := filepath.Join(programs.Dir(b), "fairlead")
	cmd := exec.Command(fairlead, "proxy", "--kubeconfig", api.reach(b, place.Node()), "--node-name", "n1", "--iptables-variant", variant)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(b.TempDir(), "lock"))
	p, err := kube.StartProcess(place.Node(), filepath.Join(b.TempDir(), "log"), cmd)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func startKubeProxy(b *testing.B, api *api, place proxytest.Place, variant string) *kube.Process {
	p, err := kube.StartKubeProxy(b.Context(), place.Node(), "n1", api.reach(b, place.Node()), variant, b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// measure lets the contestants run one after the other, in another order each
// time, and reports what is asked of them.
func measure(b *testing.B, api *api, variant string) {
	all := map[string]contestant{"fairlead": startFairlead, "kube-proxy": startKubeProxy}
	if variant == "nft" {
		delete(all, "kube-proxy")
	}
	names := slices.Sorted(maps.Keys(all))
	results := map[string]map[string][]float64{} // contestant → unit → value of each round
	for b.Loop() {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			if results[name] == nil {
				results[name] = map[string][]float64{}
			}
			round(b, api, variant, all[name], results[name])
			b.Log(name, results[name])
		}
	}
	for name, result := range results {
		for unit, values := range result {
			b.ReportMetric(bench.Quantile(values, 0.5), unit+"/"+name)
		}
	}
	b.ReportMetric(0, "ns/op")
}

// round measures one contestant once.
func round(b *testing.B, api *api, variant string, start contestant, result map[string][]float64) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	place := proxytest.NewPlace(b)
	must(b, api.point(ctx, place.Server("a")))
	started := time.Now()
	proxy := start(b, api, place, variant)
	must(b, place.ServedBy(ctx, probe, "a"))
	result["sync-s"] = append(result["sync-s"], time.Since(started).Seconds())
	var changes []float64
	for i := range changesEach {
		to := []string{"b", "a"}[i%2]
		began := time.Now()
		must(b, api.point(ctx, place.Server(to)))
		must(b, place.ServedBy(ctx, probe, to))
		changes = append(changes, float64(time.Since(began))/float64(time.Millisecond))
	}
	result["change-ms"] = append(result["change-ms"], bench.Quantile(changes, 0.5))
	for field, unit := range map[string]string{"VmHWM:": "peak-MiB", "VmRSS:": "rss-MiB"} {
		result[unit] = append(result[unit], memory(b, proxy.PID(), field))
	}
	must(b, proxy.Stop())
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// probe is where the Service is whose endpoint is changed.
var probe = netip.MustParseAddrPort("10.96.0.200:80")

var probeName = service.Name{Namespace: "default", Name: "probe"}

// point makes an address the endpoint of the probe.
func (a *api) point(ctx context.Context, to netip.AddrPort) error {
	return a.Apply(ctx, service.Update{Slices: map[service.Name]*service.Slice{probeName: {
		Name: probeName, Service: probeName.Name, Ports: []service.Port{{Protocol: service.TCP, Number: to.Port()}},
		Endpoints: []service.Endpoint{{Addr: to.Addr(), Ready: true, Serving: true, Node: "n1"}},
	}}})
}

// prepare makes the node's object and the probe.
func (a *api) prepare(ctx context.Context, node *service.Node) error {
	port := service.Port{Protocol: service.TCP, Number: probe.Port()}
	return a.Apply(ctx, service.Update{
		Nodes: map[string]*service.Node{node.Name: node},
		Services: map[service.Name]*service.Service{probeName: {
			Name: probeName, ClusterIPs: []netip.Addr{probe.Addr()}, Ports: []service.ServicePort{{Port: port}},
		}},
	})
}

// fill makes the Services and their EndpointSlices.
func fill(ctx context.Context, api *kube.Server) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(32)
	for i := range manyServices {
		work.Go(func() error {
			name := fmt.Sprintf("service-%d", i)
			s := &corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: name},
				Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
			}
			if _, err := api.Client.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{}); err != nil {
				return err
			}
			_, err := api.Client.DiscoveryV1().EndpointSlices("default").Create(ctx, manyEndpoints(name, i), metav1.CreateOptions{})
			return err
		})
	}
	return work.Wait()
}

func manyEndpoints(service string, i int) *discovery.EndpointSlice {
	port := int32(8080)
	s := &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: service + "-1", Labels: map[string]string{discovery.LabelServiceName: service}},
		AddressType: discovery.AddressTypeIPv4,
		Ports:       []discovery.EndpointPort{{Port: &port}},
	}
	for j := range endpointsEach {
		node := fmt.Sprintf("node-%d", j)
		n := i*endpointsEach + j
		s.Endpoints = append(s.Endpoints, discovery.Endpoint{
			Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+n>>16, n>>8&0xff, n&0xff)},
			NodeName:  &node,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("%s-%d", service, j)},
		})
	}
	return s
}

// memory is what a field of /proc/PID/status says, in MiB, see
// proc_pid_status(5).
func memory(b *testing.B, pid int, field string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(b, err)
	for line := range strings.Lines(string(status)) {
		if words := strings.Fields(line); words[0] == field {
			kB, err := strconv.Atoi(words[1])
			must(b, err)
			return float64(kB) / 1024
		}
	}
	b.Fatalf("no %s in /proc/%d/status", field, pid)
	return 0
}

// BenchmarkOthersTraffic opens connections from pod to pod, which are for no
// Service, through nodes whose proxies have no Service and many, and reports the
// median time of a connect.
func BenchmarkOthersTraffic(b *testing.B) {
	const slice = 200 // connections
	full := startAPI(b)
	must(b, fill(b.Context(), full.Server))
	empty := startAPI(b)
	for _, api := range []*api{full, empty} {
		must(b, api.prepare(b.Context(), proxytest.Node()))
	}
	for _, variant := range []string{"legacy", "nft"} {
		b.Run(variant, func(b *testing.B) {
			var places []proxytest.Place
			for _, api := range []*api{empty, full} {
				place := proxytest.NewPlace(b)
				must(b, api.point(b.Context(), place.Server("a")))
				proxy := startFairlead(b, api, place, variant)
				defer func() { must(b, proxy.Stop()) }()
				must(b, place.ServedBy(b.Context(), probe, "a"))
				places = append(places, place)
			}
			var took [2][]float64 // of each slice
			for b.Loop() {
				for i, place := range places {
					took[i] = append(took[i], connects(b, place, slice))
				}
			}
			ratio := bench.Ratio(took[1], took[0], rand.New(rand.NewPCG(1, 1)))
			b.Logf("with %d Services / with none: %.2f (%.2f to %.2f)", manyServices, ratio.Estimate, ratio.Low, ratio.High)
			b.ReportMetric(bench.Quantile(took[0], 0.5), "µs/none")
			b.ReportMetric(bench.Quantile(took[1], 0.5), "µs/many")
			b.ReportMetric(ratio.Estimate, "ratio")
		})
	}
}

// connects is the median time of a connect in µs.
func connects(b *testing.B, place proxytest.Place, n int) float64 {
	b.Helper()
	var took []float64
	to := net.TCPAddrFromAddrPort(place.Server("a"))
	must(b, place.From("client", func() error {
		for range n {
			began := time.Now()
			conn, err := net.DialTCP("tcp", nil, to)
			if err != nil {
				return err
			}
			took = append(took, float64(time.Since(began))/float64(time.Microsecond))
			_ = conn.SetLinger(0)
			_ = conn.Close()
		}
		return nil
	}))
	return bench.Quantile(took, 0.5)
}
