package kube_test

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
)

// Every protocol, both families: each endpoint in its turn.
func TestTraffic(t *testing.T) {
	c := newCluster(t)
	c.checkSpread(c.pods...)
}

// The API server makes a Service and a slice for itself. A node reaches it there.
// (A pod would too, if what leaves the cluster were masqueraded.)
func TestServiceKubernetes(t *testing.T) {
	c := newCluster(t)
	c.must(c.Nodes[1].NS().Do(func() error {
		conn, err := tls.Dial("tcp", "10.96.0.1:443", &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		return conn.Close()
	}))
}

func TestEndpointsChange(t *testing.T) {
	c := newCluster(t)
	var took []time.Duration
	for i := range 20 {
		pod := c.pods[i%len(c.pods)]
		started := time.Now()
		c.serve("web", pod)
		for _, vip := range []echo.Endpoint{vips()[0], vips()[3]} { // TCP, IPv4 and IPv6
			c.until(vip, answeredBy(pod))
		}
		took = append(took, time.Since(started))
	}
	slices.Sort(took)
	t.Logf("from before the request to the API server until a connection is answered by the new endpoint, both families: p50 %s, max %s", took[len(took)/2], took[len(took)-1])

	c.serve("web", c.pods[2])
	c.untilOnly(c.pods[2])
	c.serve("web", c.pods[:2]...)
	for _, vip := range vips() {
		c.until(vip, answeredBy(c.pods[0]))
	}
	c.checkSpread(c.pods[:2]...)

	c.serve("web")
	refused := func(_ echo.Reply, err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
	for _, vip := range vips() {
		c.until(vip, refused)
	}
}

// What is another proxy's is not touched.
func TestOtherProxysService(t *testing.T) {
	c := newCluster(t)
	c.create("theirs", "10.96.0.20", "fd00:10:96::20", func(s *corev1.Service) {
		s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	})
	ours := c.create("ours", "10.96.0.30", "fd00:10:96::30")
	c.serve("ours", c.pods[0])
	c.waitFor(ours)
	rules, err := c.Nodes[0].Output(t.Context(), "iptables-save")
	c.must(err)
	if !strings.Contains(rules, "default/ours") || strings.Contains(rules, "default/theirs") {
		t.Errorf("rules:\n%s", rules)
	}
}

// A load balancer's address may be anything for the API server. A Service with
// one that makes no sense is left out, the others are not.
func TestBadObject(t *testing.T) {
	c := newCluster(t)
	bad := c.create("bad", "10.96.0.20", "fd00:10:96::20", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
	})
	c.serve("bad", c.pods[0])
	c.waitFor(bad)
	c.setIngress(bad, "127.0.0.1")
	const problem = `Service default/bad: status.loadBalancer.ingress[0].ip: Invalid value: \"127.0.0.1\": must not be loopback`
	vip := lab.VIPs(bad)[0]
	c.until(vip, func(_ echo.Reply, err error) bool { return err != nil })
	c.checkSpread(c.pods...)
	if log := c.log(); strings.Count(log, `msg="left out" problem="`+problem) != 1 {
		t.Errorf("the log does not say once that %s:\n%s", problem, log)
	}

	c.setIngress(bad, "192.0.2.1")
	c.until(vip, answeredBy(c.pods[0]))
	if log := c.log(); !strings.Contains(log, `msg=mended problem="`+problem) {
		t.Errorf("the log does not say that it is mended:\n%s", log)
	}
}

func (c *cluster) setIngress(s *corev1.Service, ip string) {
	c.t.Helper()
	services := c.api.Client.CoreV1().Services("default")
	now, err := services.Get(c.t.Context(), s.Name, metav1.GetOptions{})
	c.must(err)
	now.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
	_, err = services.UpdateStatus(c.t.Context(), now, metav1.UpdateOptions{})
	c.must(err)
}
