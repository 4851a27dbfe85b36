package kube_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/netns"
)

// cluster is a lab of two nodes whose proxies watch an API server, through a
// relay. It has a client on the first node, three servers, and the Service web.
type cluster struct {
	*lab.Lab
	t      *testing.T
	api    *kube.Server
	relay  *kube.Relay
	client *lab.Pod
	pods   []*lab.Pod // web-1, web-2, web-3
}

const (
	relayPort = 7443
	webIPv4   = "10.96.0.10"
	webIPv6   = "fd00:10:96::10"
)

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := newClusterBehind(t, func(*kube.Relay) {})
	c.waitFor(lab.NewService("web", webIPv4, webIPv6))
	return c
}

// newClusterBehind is newCluster with something done to the relay before the
// proxies start. It does not wait for them.
func newClusterBehind(t *testing.T, prepare func(*kube.Relay)) *cluster {
	t.Helper()
	c := &cluster{t: t}
	c.Lab = labtest.New(t, lab.Options{Nodes: 2, Mode: "iptables", BinDir: programs.Dir(t), Source: func(ctx context.Context, l *lab.Lab) (lab.Sources, error) {
		kubeconfig, err := c.startAPIServer(ctx, l.Outside())
		if err == nil {
			prepare(c.relay)
		}
		return lab.Sources{Proxy: []string{"--kubeconfig", kubeconfig}}, err
	}})
	for _, n := range c.NodeObjects() {
		c.createNode(n)
	}
	c.client = labtest.AddPod(t, c.Lab, c.Nodes[0], "client")
	for i := range 3 {
		c.pods = append(c.pods, labtest.AddPod(t, c.Lab, c.Nodes[i%2], fmt.Sprintf("web-%d", i+1)))
	}
	c.create("web", webIPv4, webIPv6)
	c.serve("web", c.pods...)
	return c
}

func (c *cluster) startAPIServer(ctx context.Context, underlay *netns.NS) (kubeconfig string, err error) {
	if c.api, err = kube.Start(ctx, underlay, lab.Gateway(), c.t.TempDir()); err != nil {
		return "", err
	}
	c.t.Cleanup(func() {
		if err := c.api.Stop(); err != nil {
			c.t.Error(err)
		}
	})
	if c.relay, err = c.api.NewRelay(relayPort); err != nil {
		return "", err
	}
	c.t.Cleanup(c.relay.Shut)
	return c.api.Kubeconfig(relayPort)
}

// must ends the test if the call that err is of has failed.
func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) createNode(n *corev1.Node) {
	c.t.Helper()
	nodes := c.api.Client.CoreV1().Nodes()
	made, err := nodes.Create(c.t.Context(), n, metav1.CreateOptions{})
	c.must(err)
	made.Status = n.Status
	_, err = nodes.UpdateStatus(c.t.Context(), made, metav1.UpdateOptions{})
	c.must(err)
}

// create makes a Service as lab.NewService does, changed by the details.
func (c *cluster) create(name, ipv4, ipv6 string, details ...func(*corev1.Service)) *corev1.Service {
	c.t.Helper()
	s := lab.NewService(name, ipv4, ipv6)
	policy := corev1.IPFamilyPolicyRequireDualStack
	s.Spec.IPFamilyPolicy = &policy
	for _, d := range details {
		d(s)
	}
	made, err := c.api.Client.CoreV1().Services("default").Create(c.t.Context(), s, metav1.CreateOptions{})
	c.must(err)
	return made
}

func (c *cluster) delete(name string) {
	c.t.Helper()
	c.must(c.api.Client.CoreV1().Services("default").Delete(c.t.Context(), name, metav1.DeleteOptions{}))
}

// serve makes pods the endpoints of a Service, as the controller of EndpointSlices
// would.
func (c *cluster) serve(name string, pods ...*lab.Pod) {
	c.t.Helper()
	slices := c.api.Client.DiscoveryV1().EndpointSlices("default")
	for _, o := range lab.Slices(lab.NewService(name, webIPv4, webIPv6), pods...) {
		s := o.(*discovery.EndpointSlice)
		_, err := slices.Update(c.t.Context(), s, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = slices.Create(c.t.Context(), s, metav1.CreateOptions{})
		}
		c.must(err)
	}
}

// waitFor waits until a Service is answered everywhere.
func (c *cluster) waitFor(s *corev1.Service) {
	c.t.Helper()
	ctx, stop := c.Guard(c.t.Context())
	defer stop()
	c.must(c.WaitReady(ctx, s))
}

// until asks a virtual IP from the client until what it gets is right.
func (c *cluster) until(vip echo.Endpoint, right func(echo.Reply, error) bool) {
	c.t.Helper()
	ctx, stop := c.Guard(c.t.Context())
	defer stop()
	c.must(c.client.AskUntil(ctx, vip, right))
}

func answeredBy(p *lab.Pod) func(echo.Reply, error) bool {
	return func(r echo.Reply, err error) bool { return err == nil && r.Name == p.Name }
}

// untilOnly waits until a pod is the only one to answer at each virtual IP of web.
// When others take turns with it, no two answers in a row are its.
func (c *cluster) untilOnly(p *lab.Pod) {
	c.t.Helper()
	for _, vip := range vips() {
		last := ""
		c.until(vip, func(r echo.Reply, err error) bool {
			twice := err == nil && r.Name == p.Name && last == p.Name
			last = r.Name
			return twice
		})
	}
}

// checkSpread checks that of connections in a row to each virtual IP of web each
// of the pods gets as many.
func (c *cluster) checkSpread(pods ...*lab.Pod) {
	c.t.Helper()
	const each = 4
	want := map[string]int{}
	for _, p := range pods {
		want[p.Name] = each
	}
	for _, vip := range vips() {
		got := map[string]int{}
		for range each * len(pods) {
			reply, err := c.client.Ask(c.t.Context(), vip)
			c.must(err)
			got[reply.Name]++
		}
		if diff := cmp.Diff(want, got); diff != "" {
			c.t.Errorf("%s %s (-want +got):\n%s", vip.Network, vip.Addr, diff)
		}
	}
}

// vips are those of web.
func vips() []echo.Endpoint { return lab.VIPs(lab.NewService("web", webIPv4, webIPv6)) }

// log is what the proxy of the first node has logged.
func (c *cluster) log() string {
	c.t.Helper()
	text, err := c.Nodes[0].ProxyLog()
	c.must(err)
	return text
}

// untilLogged waits until the proxy of the first node has logged a text.
func (c *cluster) untilLogged(text string) {
	c.t.Helper()
	for look := time.NewTicker(50 * time.Millisecond); !strings.Contains(c.log(), text); {
		select {
		case <-look.C:
		case <-c.t.Context().Done():
			c.t.Fatalf("the log does not say %q:\n%s", text, c.log())
		}
	}
}
