package faults

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// TestScale has more of everything than most clusters have, with each way to program
// the kernel.
func TestScale(t *testing.T) {
	for _, tt := range ways {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t, 2, tt.mode)
			for _, n := range c.Nodes {
				c.Restart(t, n, unix.SIGTERM, tt.mode, tt.flags...)
			}
			t.Run("many endpoints", c.manyEndpoints)
			t.Run("Services remade", c.servicesRemade)
			t.Run("many nodes", c.manyNodes)
		})
	}
}

// manyEndpoints has a Service with more endpoints than one slice holds: each gets a
// connection in turn.
func (c cluster) manyEndpoints(t *testing.T) {
	count := size(300, 5000)
	endpoints := c.crowd(t, count)
	tr := traffic.Start(t, c.sources...)
	write(t, c.Nodes[0], "many.yaml", service("many", "10.96.9.9", 8081)+slicesOf("many", endpoints))
	to := netip.MustParseAddrPort("10.96.9.9:80")
	took := c.awaitMetric(t, "fairlead_frontends", frontends+1)
	t.Logf("%d endpoints after %s", count, took.Round(time.Millisecond))
	got := map[string]int{}
	for range count {
		name, err := c.who(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		got[name]++
	}
	if len(got) != count {
		t.Errorf("%d connections went to %d endpoints of %d", count, len(got), count)
	}
	tr.GoOn(t)
	tr.End(t)
	write(t, c.Nodes[0], "many.yaml", "")
}

// crowd has one pod serve at so many addresses.
func (c cluster) crowd(t *testing.T, count int) (addrs []netip.Addr) {
	t.Helper()
	pod := c.Web[0]
	pod.NS().RunT(t, "ip", "route", "add", "local", "10.98.0.0/16", "dev", "lo")
	c.Nodes[0].NS().RunT(t, "ip", "route", "add", "10.98.0.0/16", "via", pod.IPv4().String())
	var l net.Listener
	err := pod.NS().Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(t.Context(), "tcp4", ":8081")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintln(conn, conn.LocalAddr())
			_ = conn.Close()
		}
	}()
	for i := range count {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 98, byte(i >> 8), byte(i)}))
	}
	return addrs
}

// who connects and reads who answers.
func (c cluster) who(ctx context.Context, to netip.AddrPort) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = c.Client.NS().Do(func() error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
		name, err = bufio.NewReader(conn).ReadString('\n')
		if name != "" && errors.Is(err, io.EOF) {
			err = nil
		}
		return err
	})
	return name, err
}

// servicesRemade has a crowd of Services deleted and made again at once, which is
// nothing to the others.
func (c cluster) servicesRemade(t *testing.T) {
	node, count := c.Nodes[0], size(300, 10_000)
	var all strings.Builder
	for i := range count {
		name := fmt.Sprintf("s%d", i)
		all.WriteString(service(name, fmt.Sprintf("10.97.%d.%d", i>>8, i&255), 8080))
		all.WriteString(slicesOf(name, []netip.Addr{c.Web[i%len(c.Web)].IPv4()}))
	}
	await := func(want int) {
		t.Helper()
		took := c.awaitMetric(t, "fairlead_frontends", frontends+want)
		t.Logf("%d Services after %s", want, took.Round(time.Millisecond))
	}
	tr := traffic.Start(t, c.sources...)
	for range 2 {
		write(t, node, "crowd.yaml", all.String())
		await(count)
		write(t, node, "crowd.yaml", "")
		await(0)
	}
	tr.GoOn(t)
	tr.End(t)
}

func (c cluster) awaitMetric(t *testing.T, name string, want int) time.Duration {
	t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		got := metric(t, c.Nodes[0], proxyMetrics, name)
		if got == want {
			return time.Since(began)
		}
		if time.Since(began) > size(time.Minute, 5*time.Minute) {
			t.Fatalf("%s is %d, want %d", name, got, want)
		}
	}
}

// manyNodes has a crowd of nodes come and go, behind tunnels: pods of those that
// stay reach each other all the time.
func (c cluster) manyNodes(t *testing.T) {
	count := size(200, 5000)
	const metricOfRoutes = "fairlead_node_routes_programmed"
	before := metric(t, c.Nodes[0], lab.AgentMetrics, metricOfRoutes)
	tr := traffic.Start(t, c.sources...)
	for _, want := range []int{count, 0} {
		for _, n := range c.Nodes {
			write(t, n, "nodes.yaml", nodesText(want))
		}
		took := eventually(t, func() error {
			got := metric(t, c.Nodes[0], lab.AgentMetrics, metricOfRoutes)
			if come := got - before; come < want || want == 0 && come > 0 {
				return fmt.Errorf("%d more routes for %d more nodes", come, want)
			}
			return nil
		})
		t.Logf("%d more nodes after %s", want, took.Round(time.Millisecond))
	}
	tr.GoOn(t)
	tr.End(t)
}

// nodesText are so many nodes, of which the first one's pods are 10.100.0.0/24.
func nodesText(count int) string {
	var all strings.Builder
	for i := range count {
		fmt.Fprintf(&all, "---\napiVersion: v1\nkind: Node\nmetadata: {name: n%d}\nspec: {podCIDR: 10.%d.%d.0/24, podCIDRs: [10.%[2]d.%d.0/24]}\n"+
			"status: {addresses: [{type: InternalIP, address: 172.20.%[4]d.%d}]}\n", i, 100+i>>8, i&255, i>>8, i&255)
	}
	return all.String()
}

func service(name, ip string, port int) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default}\n"+
		"spec: {clusterIP: %s, clusterIPs: [%[2]s], ipFamilies: [IPv4], ports: [{name: tcp, protocol: TCP, port: 80, targetPort: %d}]}\n", name, ip, port)
}

// slicesOf are at most a hundred endpoints each, as Kubernetes makes them. Their port is
// 8081 for a crowd and that of the pods for one.
func slicesOf(of string, addrs []netip.Addr) string {
	const most = 100
	port := lab.PodPort
	if len(addrs) > 1 {
		port = 8081
	}
	var text strings.Builder
	for i, a := range addrs {
		if i%most == 0 {
			fmt.Fprintf(&text, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: %s-%d, namespace: default, labels: {kubernetes.io/service-name: %[1]s}}\n"+
				"addressType: IPv4\nports: [{name: tcp, protocol: TCP, port: %[3]d}]\nendpoints:\n", of, i/most, port)
		}
		fmt.Fprintf(&text, "- {addresses: [%s], conditions: {ready: true}}\n", a)
	}
	return text.String()
}

// write replaces a file of a node's manifests in one step.
func write(t *testing.T, n *lab.Node, name, text string) {
	t.Helper()
	at := filepath.Join(n.Manifests(), name)
	next := at + ".next" // which is no name of a manifest
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, at); err != nil {
		t.Fatal(err)
	}
}
