package labtest

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
)

// Cluster is a lab with a client on node-1 and a Service of three pods, web-1 to
// web-3, on all nodes in turn.
type Cluster struct {
	*lab.Lab
	Client  *lab.Pod
	Web     []*lab.Pod
	Service *corev1.Service
	VIPs    []echo.Endpoint // of the Service
}

// NewCluster makes a Cluster that goes with the test, and waits until the Service
// works.
func NewCluster(t *testing.T, opts lab.Options) *Cluster {
	t.Helper()
	l := New(t, opts)
	c := &Cluster{Lab: l, Client: AddPod(t, l, l.Nodes[0], "client")}
	for i := range 3 {
		c.Web = append(c.Web, AddPod(t, l, l.Nodes[i%opts.Nodes], fmt.Sprintf("web-%d", i+1)))
	}
	c.Service = lab.NewService("web", "10.96.0.10", "fd00:10:96::10")
	c.VIPs = lab.VIPs(c.Service)
	if err := l.Apply(append(lab.Slices(c.Service, c.Web...), c.Service)...); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitReady(t.Context(), c.Service); err != nil {
		t.Fatal(err)
	}
	return c
}

// NodePorts makes the Service reachable from outside, at node-1, and says where.
func (c *Cluster) NodePorts(t *testing.T, port int32) []echo.Endpoint {
	t.Helper()
	c.Service.Spec.Type = corev1.ServiceTypeNodePort
	var at []echo.Endpoint
	for i := range c.Service.Spec.Ports {
		p := &c.Service.Spec.Ports[i]
		p.NodePort = port
		at = append(at, echo.Endpoint{Network: strings.ToLower(string(p.Protocol)), Addr: netip.AddrPortFrom(c.Nodes[0].Addrs[0], uint16(port))})
	}
	if err := c.Apply(c.Service); err != nil {
		t.Fatal(err)
	}
	for _, to := range at {
		if err := until(t.Context(), c.Outside(), to); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

// Restart ends the proxy of a node and waits until another one has programmed the
// kernel.
func (c *Cluster) Restart(t *testing.T, node *lab.Node, signal unix.Signal, mode string, flags ...string) {
	t.Helper()
	before, err := node.ProxyLog() // of all proxies that the node has had
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RestartProxy(node, signal, mode, flags...); err != nil {
		t.Fatal(err)
	}
	awaitSynced(t, node, len(before))
}

// AwaitProxies waits until the proxies of all nodes have programmed the kernel. Until then
// packets may be lost also on their way from pod to pod: before kernel 6.6 a link to which
// mode ebpf attaches drops for some milliseconds what it is to send (docs/packets.md).
func AwaitProxies(t *testing.T, l *lab.Lab) {
	t.Helper()
	for _, n := range l.Nodes {
		awaitSynced(t, n, 0)
	}
}

// awaitSynced waits until a node's proxy logs, after so much that it has logged, that it
// has programmed the kernel.
func awaitSynced(t *testing.T, node *lab.Node, logged int) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		log, err := node.ProxyLog()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(log[logged:], "msg=synced") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the proxy does not program the kernel:\n%s", log)
		}
	}
}

// until asks until there is an answer.
func until(ctx context.Context, from *netns.NS, to echo.Endpoint) error {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := ask(ctx, from, to)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

func ask(ctx context.Context, from *netns.NS, to echo.Endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return from.Do(func() error {
		_, err := echo.Ask(ctx, to.Network, netip.AddrPort{}, to.Addr)
		return err
	})
}
