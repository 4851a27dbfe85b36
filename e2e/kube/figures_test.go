package kube_test

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/bench"
	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/proxy/proxytest"
	"github.com/fairlead/fairlead/proxy/service"
)

var manyServices = flag.Int("services", 10_000, "how many Services there are in the benchmark beside kube-proxy")

const (
	endpointsEach = 5
	// connectBlocks and connectsEach: so many blocks, so many connects of each
	// candidate in each.
	connectBlocks, connectsEach = 20, 200
)

// BenchmarkBesideKubeProxy has Fairlead and kube-proxy follow one API server with
// many Services, one after the other, once per iteration in another order, and prints
// the medians as a table, beside what is asked of Fairlead. kube-proxy with
// iptables-nft is left out: its first sync takes minutes.
func BenchmarkBesideKubeProxy(b *testing.B) {
	programs.Dir(b) // built before anything is measured
	api := startAPI(b)
	must(b, api.prepare(b.Context()))
	must(b, fill(b.Context(), api.Server))
	contestants := []*contestant{
		{name: "fairlead legacy", variant: "legacy", start: startFairlead, changes: 20, connects: true},
		{name: "fairlead nft", variant: "nft", start: startFairlead, changes: 60, connects: true},
		{name: "fairlead ebpf", start: startEBPF, changes: 60},
		{name: "kube-proxy legacy", variant: "legacy", start: startKubeProxy, changes: 8},
	}
	order := rand.Perm(len(contestants))
	for b.Loop() {
		for _, i := range order {
			contestants[i].round(b, api)
		}
		order = append(order[1:], order[0])
	}
	b.ReportMetric(0, "ns/op")
	b.Log("\n" + table(contestants))
}

// contestant is a proxy on a node, and what was measured of it: figure → one value of
// each round.
type contestant struct {
	name, variant string
	start         func(b *testing.B, api *api, place proxytest.Place, variant string) *kube.Process
	changes       int  // of an endpoint in a round
	connects      bool // are measured
	figures       map[figure][]float64
}

type figure string

const (
	firstSync = figure("first sync, from the start of the program until a Service answers (s)")
	change    = figure("one endpoint changed, from the request to the API server until it answers, p50 (ms)")
	inKernel  = figure("of that until the kernel is told, from the news, mean (ms)")
	processor = figure("processor time of a change, proxy and iptables (ms)")
	resident  = figure("resident memory (MiB)")
	peak      = figure("resident memory at its peak (MiB)")
	connect   = figure("connect for no Service, p50, with many Services / with none")
)

// asked are the bounds that are asked of Fairlead: of legacy, nft and eBPF.
var asked = []struct {
	figure figure
	of     [3]string
}{
	{firstSync, [3]string{"≤ 0.7 × kube-proxy", "≤ 10", ""}},
	{change, [3]string{}},
	{inKernel, [3]string{"≤ 60", "≤ 60", "≤ 0.3"}},
	{processor, [3]string{}},
	{resident, [3]string{"≤ 0.5 × kube-proxy", "≤ 0.5 × kube-proxy", "≤ 110"}},
	{peak, [3]string{}},
	{connect, [3]string{"≤ 1.3", "≤ 1.3", ""}},
}

// table has a row for each figure. The last of all is who the others are compared with.
func table(all []*contestant) string {
	var text strings.Builder
	ours, kubeProxy := all[:len(all)-1], all[len(all)-1]
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d Services × %d endpoints, %d rounds", *manyServices, endpointsEach, len(kubeProxy.figures[firstSync]))
	for _, c := range ours {
		fmt.Fprintf(w, "\t%s\tasked", c.name)
	}
	fmt.Fprintf(w, "\t%s\n", kubeProxy.name)
	for _, a := range asked {
		fmt.Fprint(w, a.figure)
		for i, c := range ours {
			fmt.Fprintf(w, "\t%s\t%s", c.value(a.figure, kubeProxy), a.of[i])
		}
		fmt.Fprintf(w, "\t%s\n", kubeProxy.value(a.figure, kubeProxy))
	}
	_ = w.Flush()
	return text.String()
}

// value is the median of a figure, and how many times another's it is.
func (c *contestant) value(f figure, than *contestant) string {
	values := c.figures[f]
	if len(values) == 0 {
		return "–"
	}
	median, other := bench.Quantile(values, 0.5), bench.Quantile(than.figures[f], 0.5)
	if c == than || len(than.figures[f]) == 0 {
		return fmt.Sprintf("%.3g", median)
	}
	return fmt.Sprintf("%.3g (%.2f ×)", median, median/other)
}

// round measures a contestant once.
func (c *contestant) round(b *testing.B, api *api) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	place := proxytest.NewPlace(b)
	must(b, api.point(ctx, place.Server("a")))
	began := time.Now()
	proxy := c.start(b, api, place, c.variant)
	must(b, place.UntilServedBy(ctx, probe, "a"))
	c.note(firstSync, time.Since(began).Seconds())

	var took []float64
	told, syncs := syncTimes(b, place)
	for syncs == 0 { // the first one, which made the probe answer, has not ended yet
		must(b, ctx.Err())
		time.Sleep(50 * time.Millisecond)
		told, syncs = syncTimes(b, place)
	}
	cpu := processorTime(b, proxy.PID())
	for i := range c.changes {
		to := []string{"b", "a"}[i%2]
		began := time.Now()
		must(b, api.point(ctx, place.Server(to)))
		must(b, place.UntilServedBy(ctx, probe, to))
		took = append(took, milliseconds(time.Since(began)))
	}
	c.note(change, bench.Quantile(took, 0.5))
	c.note(processor, milliseconds(processorTime(b, proxy.PID())-cpu)/float64(c.changes))
	toldAfter, syncsAfter := syncTimes(b, place)
	c.note(inKernel, 1000*(toldAfter-told)/(syncsAfter-syncs))
	c.note(resident, memory(b, proxy.PID(), "VmRSS:"))
	c.note(peak, memory(b, proxy.PID(), "VmHWM:"))
	if c.connects {
		c.note(connect, connectRatio(b, place, c.variant))
	}
	must(b, proxy.Stop())
	b.Log(c.name, c.figures)
}

func (c *contestant) note(f figure, value float64) {
	if c.figures == nil {
		c.figures = map[figure][]float64{}
	}
	c.figures[f] = append(c.figures[f], value)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func startFairlead(b *testing.B, api *api, place proxytest.Place, variant string) *kube.Process {
	config := kube.KubeProxyConfig(onNode, api.reach(b, place.Node()))
	p, err := kube.StartFairlead(place.Node(), filepath.Join(programs.Dir(b), "fairlead"), config, variant, b.TempDir())
	must(b, err)
	return p
}

func startEBPF(b *testing.B, api *api, place proxytest.Place, _ string) *kube.Process {
	dir, node, fairlead := b.TempDir(), place.Node(), filepath.Join(programs.Dir(b), "fairlead")
	b.Cleanup(func() { // before the directory goes
		must(b, node.Do(exec.Command(fairlead, "cleanup", "--cni-conf-dir", dir, "--bpf-root", filepath.Join(dir, "bpf")).Run))
	})
	config := kube.KubeProxyConfig(onNode, api.reach(b, node))
	p, err := kube.StartFairleadEBPF(node, fairlead, config, cgroup.NewT(b).Path, dir)
	must(b, err)
	return p
}

func startKubeProxy(b *testing.B, api *api, place proxytest.Place, variant string) *kube.Process {
	config := kube.KubeProxyConfig(onNode, api.reach(b, place.Node()))
	p, err := kube.StartKubeProxy(b.Context(), place.Node(), config, variant, b.TempDir())
	must(b, err)
	return p
}

// onNode is the configuration of both.
var onNode = service.Config{NodeName: proxytest.NodeObject().Name}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// probe is where the Service is whose endpoint is changed.
var probe = netip.MustParseAddrPort("10.96.0.200:80")

var probeName = service.Name{Namespace: "default", Name: "probe"}

// prepare makes the node's object and the probe.
func (a *api) prepare(ctx context.Context) error {
	node, port := proxytest.NodeObject(), service.Port{Protocol: service.TCP, Number: probe.Port()}
	return a.Apply(ctx, service.Update{
		Nodes: map[string]*service.Node{node.Name: node},
		Services: map[service.Name]*service.Service{probeName: {
			Name: probeName, ClusterIPs: []netip.Addr{probe.Addr()}, Ports: []service.ServicePort{{Port: port}},
		}},
	})
}

// point makes an address the endpoint of the probe.
func (a *api) point(ctx context.Context, to netip.AddrPort) error {
	return a.Apply(ctx, service.Update{Slices: map[service.Name]*service.Slice{probeName: {
		Name: probeName, Service: probeName.Name, Ports: []service.Port{{Protocol: service.TCP, Number: to.Port()}},
		Endpoints: []service.Endpoint{{Addr: to.Addr(), Ready: true, Serving: true, Node: onNode.NodeName}},
	}}})
}

// fill makes the Services and their EndpointSlices.
func fill(ctx context.Context, api *kube.Server) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(32)
	for i := range *manyServices {
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

// syncTimes are how long a proxy has told the kernel of changes of IPv4, in s, and how
// often, as its metrics say, which both have under one name.
func syncTimes(b *testing.B, place proxytest.Place) (seconds, count float64) {
	b.Helper()
	const name = "kubeproxy_sync_proxy_rules_duration_seconds"
	text, err := metrics(place)
	must(b, err)
	for line := range strings.Lines(text) {
		metric, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch metric {
		case name + `_sum{ip_family="IPv4"}`:
			seconds, _ = strconv.ParseFloat(value, 64)
		case name + `_count{ip_family="IPv4"}`:
			count, _ = strconv.ParseFloat(value, 64)
		}
	}
	return seconds, count
}

// processorTime is what a process and those of its children that have ended have used,
// see proc_pid_stat(5).
func processorTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(b, err)
	_, rest, _ := strings.Cut(string(stat), ") ")
	const utime, cstime = 14 - 3, 17 - 3 // their numbers there; rest begins with number 3
	var ticks int
	for _, field := range strings.Fields(rest)[utime : cstime+1] {
		n, err := strconv.Atoi(field)
		must(b, err)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
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

// connectRatio is how long connects from pod to pod take, which are for no Service,
// beside those on a node whose Fairlead has no Service.
func connectRatio(b *testing.B, many proxytest.Place, variant string) float64 {
	b.Helper()
	none := proxytest.NewPlace(b)
	dir := b.TempDir()
	cmd := exec.Command(filepath.Join(programs.Dir(b), "fairlead"), append([]string{"proxy", "--manifests", b.TempDir(),
		"--node-name", onNode.NodeName, "--iptables-variant", variant}, kube.Alone(dir)...)...)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(dir, "lock"))
	proxy, err := kube.StartProcess(none.Node(), filepath.Join(dir, "log"), cmd)
	must(b, err)
	defer func() { must(b, proxy.Stop()) }()
	for !strings.Contains(proxy.Said(), "msg=synced") {
		time.Sleep(20 * time.Millisecond)
		must(b, b.Context().Err())
	}
	blocks := bench.Blocks{Count: connectBlocks, Random: rand.New(rand.NewPCG(1, 1)), MaxSteal: 0.5, Progress: func(bench.Progress) {}}
	candidate := func(name string, place proxytest.Place) bench.Candidate {
		return bench.Candidate{Name: name, Slice: func(context.Context) (bench.Sample, error) { return connects(place) }}
	}
	result, err := blocks.Run(b.Context(), []bench.Candidate{candidate("none", none), candidate("many", many)})
	must(b, err)
	random := rand.New(rand.NewPCG(1, 2))
	return bench.Ratio(result.Series("many", "connect").Medians(), result.Series("none", "connect").Medians(), random).Estimate
}

// connects are the times of a slice of connects.
func connects(place proxytest.Place) (bench.Sample, error) {
	var took []float64
	to := net.TCPAddrFromAddrPort(place.Server("a"))
	err := place.From("client", func() error {
		for range connectsEach {
			began := time.Now()
			conn, err := net.DialTCP("tcp", nil, to)
			if err != nil {
				return err
			}
			took = append(took, float64(time.Since(began)))
			_ = conn.SetLinger(0)
			_ = conn.Close()
		}
		return nil
	})
	return bench.Sample{"connect": took}, err
}
