package kube_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
)

const (
	manyServices  = 10_000
	endpointsEach = 5
)

// BenchmarkManyServices starts a proxy in a cluster of many Services and reports
// how long it takes until it has programmed them, and its resident memory then
// and at most.
func BenchmarkManyServices(b *testing.B) {
	dir := programs.Dir(b)
	for b.Loop() {
		b.StopTimer()
		data := b.TempDir()
		var started time.Time
		l, err := lab.New(b.Context(), lab.Options{Nodes: 1, BinDir: dir, Source: func(ctx context.Context, underlay *netns.NS) ([]string, error) {
			api, err := kube.Start(ctx, underlay, lab.Gateway(), data)
			if err != nil {
				return nil, err
			}
			if err := fill(ctx, api); err != nil {
				return nil, err
			}
			kubeconfig, err := api.Kubeconfig(6443)
			started = time.Now()
			b.StartTimer()
			return []string{"--kubeconfig", kubeconfig}, err
		}})
		if err != nil {
			b.Fatal(err)
		}
		awaitSync(b, l)
		b.StopTimer()
		b.ReportMetric(time.Since(started).Seconds(), "s/first-sync")
		reportMemory(b, l.State().Nodes[0].Proxy.PID)
		if err := l.Close(); err != nil {
			b.Error(err)
		}
		b.StartTimer()
	}
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
				Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: lab.ServicePort}}},
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
	port := int32(lab.PodPort)
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

// awaitSync waits until the proxy has said that it has programmed everything.
func awaitSync(b *testing.B, l *lab.Lab) {
	b.Helper()
	ctx, stop := l.Guard(b.Context())
	defer stop()
	for look := time.NewTicker(20 * time.Millisecond); ; {
		log, err := l.Nodes[0].ProxyLog()
		if err != nil {
			b.Fatal(err)
		}
		if strings.Contains(log, "msg=synced") {
			b.Log(log)
			return
		}
		select {
		case <-ctx.Done():
			b.Fatal(context.Cause(ctx))
		case <-look.C:
		}
	}
}

// reportMemory reports what /proc/PID/status says, see proc_pid_status(5).
func reportMemory(b *testing.B, pid int) {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if fields[0] != "VmRSS:" && fields[0] != "VmHWM:" {
			continue
		}
		kB, err := strconv.Atoi(fields[1])
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(kB)/1024, "MiB/"+strings.TrimSuffix(fields[0], ":"))
	}
}
