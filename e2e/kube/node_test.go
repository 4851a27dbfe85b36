package kube_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/netns"
)

// agent is fairlead node at work on node-1, of a cluster whose other nodes are
// objects of an API server and nothing else.
type agent struct {
	cluster
	ns   *netns.NS
	conf string       // --cni-conf-dir
	log  *labtest.Log // of fairlead node
}

func newAgent(t *testing.T, nodes ...*corev1.Node) *agent {
	t.Helper()
	a := &agent{cluster: cluster{t: t}, ns: netns.NewT(t), conf: t.TempDir(), log: &labtest.Log{}}
	kubeconfig, err := a.startAPIServer(t.Context(), underlay(t, a.ns))
	a.must(err)
	for _, n := range nodes {
		a.createNode(n)
	}
	cmd := exec.Command(filepath.Join(programs.Dir(t), "fairlead"), "node", "--kubeconfig", kubeconfig, "--node-name", "node-1",
		"--inspect-socket", "", "--cni-bin-dir", "", "--cni-conf-dir", a.conf, "--host-local-dir", "")
	cmd.Stderr = a.log
	a.must(a.ns.Do(cmd.Start))
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("log of fairlead node:\n%s", a.log)
		}
	})
	return a
}

func node(name, addr, podCIDR string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: podCIDR, PodCIDRs: []string{podCIDR}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}}},
	}
}

// eventually waits until something holds.
func (a *agent) eventually(what string, holds func() bool) {
	a.t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			a.t.Fatalf("not within a minute: %s; routes:\n%s", what, a.routes())
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (a *agent) routes() string {
	a.t.Helper()
	return a.ns.RunT(a.t, "ip", "route", "show", "proto", "250")
}

func (a *agent) untilRoute(route string) {
	a.t.Helper()
	a.eventually("route "+route, func() bool { return strings.Contains(a.routes(), route) })
}

// fairlead node follows all Nodes of an API server, tells by an Event what is wrong
// with its own, and has all stay as it is while the API server is away.
func TestNodeFollowsAPIServer(t *testing.T) {
	a := newAgent(t,
		node("node-0", "192.168.244.10", "10.244.1.0/25"),
		node("node-1", "192.168.244.11", "10.244.1.0/24"),
		node("node-2", "192.168.244.12", "10.244.2.0/24"))
	a.untilRoute("10.244.2.0/24 via 192.168.244.12 dev eth0")
	a.eventually("an Event about node-1", func() bool {
		list, err := a.api.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{
			FieldSelector: "involvedObject.kind=Node,involvedObject.name=node-1,involvedObject.uid=node-1,reason=PodCIDROverlapsNode"})
		a.must(err)
		return len(list.Items) == 1 && strings.Contains(list.Items[0].Message, "its pod CIDR 10.244.1.0/24 overlaps 10.244.1.0/25 of node node-0")
	})
	conflist := filepath.Join(a.conf, "10-fairlead.conflist")
	if exists(conflist) {
		t.Error("pods may be made with addresses of another node")
	}
	nodes := a.api.Client.CoreV1().Nodes()
	a.must(nodes.Delete(t.Context(), "node-0", metav1.DeleteOptions{}))
	a.eventually("the network configuration", func() bool { return exists(conflist) })

	a.must(a.api.Kill())
	before := a.routes()
	a.must(a.api.Restart(t.Context()))
	if after := a.routes(); after != before {
		t.Errorf("routes before the API server was away:\n%safter:\n%s", before, after)
	}
	a.createNode(node("node-3", "192.168.244.13", "10.244.3.0/24"))
	a.untilRoute("10.244.3.0/24 via 192.168.244.13 dev eth0")
	a.must(nodes.Delete(t.Context(), "node-2", metav1.DeleteOptions{}))
	a.eventually("no route to node-2", func() bool { return !strings.Contains(a.routes(), "10.244.2.0/24") })

	// The node comes again with another range and another address.
	a.createNode(node("node-2", "192.168.244.22", "10.244.22.0/24"))
	a.untilRoute("10.244.22.0/24 via 192.168.244.22 dev eth0")
}

// Where Services are no pods can be: the API server says where.
func TestNodeServiceCIDRs(t *testing.T) {
	a := newAgent(t, node("node-1", "192.168.244.11", "10.244.1.0/24"), node("node-2", "192.168.244.12", "10.244.2.0/24"))
	a.untilRoute("10.244.2.0/24 via 192.168.244.12 dev eth0")
	ranges := a.api.Client.NetworkingV1().ServiceCIDRs()
	_, err := ranges.Create(t.Context(), &networking.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.244.2.0/23"}},
	}, metav1.CreateOptions{})
	a.must(err)
	a.eventually("no route to node-2", func() bool { return !strings.Contains(a.routes(), "10.244.2.0/24") })
	a.must(ranges.Delete(t.Context(), "more", metav1.DeleteOptions{}))
}
