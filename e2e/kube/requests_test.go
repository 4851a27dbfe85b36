package kube_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/proxy/proxytest"
)

// window is how long each is measured in BenchmarkRequests.
var window = flag.Duration("window", 20*time.Second, "how long the processor time of a program is measured, at rest and at ten changes a second")

// BenchmarkRequests prints what a container of each program takes of a processor, with so
// many Services as -services says: when nothing changes, and when ten endpoints a second do
// or, for fairlead node, ten Nodes of a hundred. That is what the chart requests.
//
//	go test -run '^$' -bench Requests -benchtime 1x -services 1000 .
func BenchmarkRequests(b *testing.B) {
	programs.Dir(b) // built before anything is measured
	api := startAPI(b)
	must(b, api.prepare(b.Context()))
	must(b, fill(b.Context(), api.Server))
	for i := range 100 {
		must(b, api.putNode(b.Context(), i, 0))
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%d Services × %d endpoints\tat rest\tten changes a second\tresident\n", *manyServices, endpointsEach)
	for b.Loop() {
		for _, name := range []string{"proxy, iptables legacy", "proxy, iptables nft", "proxy, ebpf", "node"} {
			s := startMeasured(b, api, name)
			time.Sleep(5 * time.Second) // what the start leaves to do
			rest := s.load(b, func(time.Time) {})
			busy := s.load(b, func(end time.Time) { s.change(b, end) })
			fmt.Fprintf(w, "%s\t%.1f m\t%.0f m\t%.0f MiB\n", name, rest, busy, memory(b, s.PID(), "VmRSS:"))
			must(b, s.Stop())
		}
	}
	must(b, w.Flush())
	b.ReportMetric(0, "ns/op")
	b.Log("\n" + text.String())
}

// measured is a program at work.
type measured struct {
	*kube.Process
	api   *api
	place proxytest.Place
	name  string
}

func startMeasured(b *testing.B, api *api, name string) measured {
	b.Helper()
	s := measured{api: api, place: proxytest.NewPlace(b), name: name}
	dir := b.TempDir()
	kubeconfig := api.reach(b, s.place.Node())
	must(b, api.point(b.Context(), s.place.Server("a")))
	args := []string{"proxy", "--kubeconfig", kubeconfig, "--node-name", onNode.NodeName, "--inspect-socket", "",
		"--bpf-root", filepath.Join(dir, "bpf"), "--cgroup-root", cgroup.NewT(b).Path}
	switch mode, variant, _ := strings.Cut(strings.TrimPrefix(name, "proxy, "), " "); mode {
	case "iptables":
		args = append(args, "--mode", mode, "--iptables-variant", variant)
	case "ebpf":
		args = append(args, "--mode", mode)
	default:
		args = []string{"node", "--kubeconfig", kubeconfig, "--node-name", onNode.NodeName, "--inspect-socket", "", "--cni-bin-dir", "", "--cni-conf-dir", ""}
	}
	fairlead := filepath.Join(programs.Dir(b), "fairlead")
	b.Cleanup(func() { // of what it mounts
		must(b, s.place.Node().Do(exec.Command(fairlead, "cleanup", "--bpf-root", filepath.Join(dir, "bpf"), "--cni-conf-dir", dir).Run))
	})
	cmd := exec.Command(fairlead, args...)
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+filepath.Join(dir, "lock"))
	var err error
	s.Process, err = kube.StartProcess(s.place.Node(), filepath.Join(dir, "log"), cmd)
	must(b, err)
	done := map[bool]string{true: "msg=connected", false: "msg=synced"}[name == "node"]
	for end := time.Now().Add(3 * time.Minute); !strings.Contains(s.Said(), done); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("%s does not program the kernel:\n%s", name, s.Said())
		}
	}
	return s
}

// load is what of a processor is taken, in thousandths, while something is done.
func (s measured) load(b *testing.B, do func(end time.Time)) float64 {
	b.Helper()
	began, cpu := time.Now(), processorTime(b, s.PID())
	end := began.Add(*window)
	do(end)
	time.Sleep(time.Until(end))
	return 1000 * float64(processorTime(b, s.PID())-cpu) / float64(time.Since(began))
}

// change has ten things a second change.
func (s measured) change(b *testing.B, end time.Time) {
	b.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 1; time.Now().Before(end); i++ {
		if s.name == "node" {
			must(b, s.api.putNode(b.Context(), i%100, (i/100+1)%2))
		} else {
			must(b, s.api.point(b.Context(), s.place.Server([]string{"a", "b"}[i%2])))
		}
		<-tick.C
	}
}

// putNode makes another node, or changes it: it has one of two addresses.
func (a *api) putNode(ctx context.Context, number, address int) error {
	nodes := a.Client.CoreV1().Nodes()
	n := node(fmt.Sprint("other-", number), fmt.Sprintf("10.201.%d.%d", address, number+1), fmt.Sprintf("10.202.%d.0/24", number))
	made, err := nodes.Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		if made, err = nodes.Create(ctx, n, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	made.Status = corev1.NodeStatus{Addresses: n.Status.Addresses}
	_, err = nodes.UpdateStatus(ctx, made, metav1.UpdateOptions{})
	return err
}
