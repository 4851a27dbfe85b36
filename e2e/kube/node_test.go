package kube_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/fairlead/fairlead/e2e/netns"
)

// agent is fairlead node at work on node-1, of a cluster whose other nodes are
// objects of an API server and nothing else.
type agent struct {
	cluster
	ns   *netns.NS
	conf string    // --cni-conf-dir
	args []string  // of fairlead
	cmd  *exec.Cmd // fairlead node at work
	log  *lines
}

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newAgent(t *testing.T, nodes ...*corev1.Node) *agent {
	t.Helper()
	a := prepareAgent(t, nodes...)
	a.start()
	return a
}

// prepareAgent is newAgent before fairlead node starts.
func prepareAgent(t *testing.T, nodes ...*corev1.Node) *agent {
	t.Helper()
	a := &agent{cluster: cluster{t: t}, ns: netns.NewT(t), conf: t.TempDir(), log: &lines{}}
	kubeconfig, err := a.startAPIServer(t.Context(), underlay(t, a.ns))
	a.must(err)
	for _, n := range nodes {
		a.createNode(n)
	}
	a.args = []string{"node", "--kubeconfig", kubeconfig, "--node-name", "node-1", "--inspect-socket", "", "--cni-bin-dir", "", "--cni-conf-dir", a.conf}
	t.Cleanup(func() {
		if a.cmd != nil {
			a.kill()
		}
		if t.Failed() {
			t.Logf("log of fairlead node:\n%s", a.log)
		}
	})
	return a
}

func (a *agent) start() {
	a.t.Helper()
	a.cmd = exec.Command(filepath.Join(programs.Dir(a.t), "fairlead"), a.args...)
	a.cmd.Stderr = a.log
	a.must(a.ns.Do(a.cmd.Start))
}

func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
	a.cmd = nil
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

// While the API server hangs, and when it is dead, for however long: routes stay, pods
// go on being made from the blocks that the node has, also by a fairlead node that was
// killed and started in the meantime. Then all goes on.
func TestNodeWithoutAPIServer(t *testing.T) {
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "1")
	a := prepareAgent(t, node("node-1", "192.168.244.11", "10.244.1.0/24"), node("node-2", "192.168.244.12", "10.244.2.0/24"))
	client, err := dynamic.NewForConfig(a.api.Config())
	a.must(err)
	installCRDs(t, client)
	a.grantPools()
	_, err = client.Resource(pools).Create(t.Context(), ipPool("lan", map[string]any{"subnet": "192.168.50.0/24", "blockSize": int64(28)}), metav1.CreateOptions{})
	a.must(err)
	data, template := t.TempDir(), filepath.Join(t.TempDir(), "template")
	a.must(os.WriteFile(template, []byte(`{"cniVersion": "1.1.0", "name": "lan", "plugins": [{"type": "fairlead-cni", "mode": "macvlan", "master": "eth0",
		"ipam": {"type": "fairlead-ipam", "dataDir": "`+data+`", "pools": ["lan"]}}]}`), 0o600))
	a.args = append(a.args, "--conf-template", template, "--ipam-data-dir", data)
	a.start()
	conflist := filepath.Join(a.conf, "10-fairlead.conflist")
	a.eventually("the network configuration", func() bool { return exists(conflist) })
	a.addPod(conflist, "pod-1")
	before := a.routes()

	a.relay.Hang()
	a.eventually("word that the API server hangs", func() bool { return strings.Contains(a.log.String(), "the API server is not followed") })
	a.addPod(conflist, "pod-2")
	a.must(a.api.Kill())
	a.relay.Resume()
	a.kill()
	a.start()
	for i := range 11 { // with those before: fewer than a quarter of the block are left
		a.addPod(conflist, fmt.Sprint("pod-away-", i))
	}
	if after := a.routes(); after != before || !exists(conflist) {
		t.Errorf("routes before the API server was away:\n%safter:\n%snetwork configuration there: %t", before, after, exists(conflist))
	}

	a.must(a.api.Restart(t.Context()))
	a.createNode(node("node-3", "192.168.244.13", "10.244.3.0/24"))
	a.untilRoute("10.244.3.0/24 via 192.168.244.13 dev eth0")
	a.eventually("another block", func() bool {
		list, err := client.Resource(blocks).List(t.Context(), metav1.ListOptions{})
		a.must(err)
		return len(list.Items) == 2
	})
}

// grantPools gives whom the tests' kubeconfig names the rights of fairlead node.
func (a *agent) grantPools() {
	a.t.Helper()
	const role = "fairlead-node"
	for _, o := range manifestFile(a.t, "cni-only.yaml") {
		if o.GetKind() == "ClusterRole" {
			apply(a.t, a.api, []*unstructured.Unstructured{o}, false)
		}
	}
	_, err := a.api.Client.RbacV1().ClusterRoleBindings().Create(a.t.Context(), &rbac.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: "system:kube-proxy"}},
	}, metav1.CreateOptions{})
	a.must(err)
}

// addPod makes a pod, as a runtime does.
func (a *agent) addPod(conflist, id string) {
	a.t.Helper()
	list, err := libcni.ConfListFromFile(conflist)
	a.must(err)
	pod := netns.NewT(a.t)
	cni := libcni.NewCNIConfigWithCacheDir([]string{programs.Dir(a.t)}, a.t.TempDir(), nil)
	err = a.ns.Do(func() error {
		result, err := cni.AddNetworkList(a.t.Context(), list, &libcni.RuntimeConf{ContainerID: id, NetNS: pod.Path(), IfName: "eth0"})
		if err != nil {
			return fmt.Errorf("ADD of %s: %w", id, err)
		}
		added, err := types100.GetResult(result)
		if err == nil && !strings.HasPrefix(added.IPs[0].Address.String(), "192.168.50.") {
			err = fmt.Errorf("ADD of %s: address %s", id, added.IPs[0].Address.String())
		}
		return err
	})
	a.must(err)
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
