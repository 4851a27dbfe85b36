package kube_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// While the API server is dead, and then hangs, nodes go on as they are: of 1,000 packets
// a second between their pods, directly and by tunnels, none is lost; routes stay; pods
// go on being made, of pools from the blocks held, also where fairlead node was killed
// and started meanwhile; and who asks is told that the cluster is not followed. Then what
// has changed in the cluster is made so.
func TestNodesWithoutAPIServer(t *testing.T) {
	// client-go asks a silent connection after 30 s whether it is alive, and waits
	// for 15 s.
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "1")
	o := newOutage(t)
	o.addPods("before", 1) // the first one of a pool has its block leased
	before := o.routes()

	o.must(o.api.Kill())
	o.untilStale()
	o.addPods("dead", 4)
	o.must(o.RestartAgent(o.Nodes[0]))
	o.addPods("restarted", 4)

	o.relay.Hang()
	o.must(o.api.Restart(t.Context()))
	o.createNode(member(93, 93)) // comes
	nodes := o.api.Client.CoreV1().Nodes()
	for _, name := range []string{"node-91", "node-92"} {
		o.must(nodes.Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
	o.createNode(member(91, 191)) // comes again, with other ranges
	o.addPods("hangs", 4)         // of node-1's block fewer than a quarter are left
	o.untilUnhealthy()
	o.untilStale()
	if after := o.routes(); after != before {
		t.Errorf("routes before the API server was away:\n%safter:\n%s", before, after)
	}

	o.relay.Resume()
	for i, dev := range []string{"eth0", "eth0", "fairlead-vx4"} {
		n := o.Nodes[i]
		o.untilRoutes(n, true, "10.244.93.0/24 via 192.168.244.93 dev "+dev)
		o.untilRoutes(n, true, "10.244.191.0/24 via 192.168.244.91 dev "+dev)
		o.untilRoutes(n, false, "10.244.91.0/24")
		o.untilRoutes(n, false, "10.244.92.0/24")
	}
	o.await("another block for node-1", func() bool { return o.blocksOf("node-1") == 2 })
	for _, n := range o.Nodes {
		o.await("health of "+n.Name, func() bool { return o.healthz(n) == "ok\n" && o.stale(n) == "" })
	}
	o.checkPods()
	for _, s := range o.streams {
		t.Log(s.End(t), "datagrams")
	}
}

// outage is a lab of three nodes, the third one behind a router, whose programs watch an
// API server through a relay; two nodes more are objects and nothing else. Each node has
// a pod, and those of the first link have a network more, of pods on that link whose
// addresses are a pool's.
type outage struct {
	cluster
	client  dynamic.Interface
	lan     map[*lab.Node]string // path of the configuration of the second network
	streams []*traffic.Stream
	routed  []*lab.Pod // made by addPods, of the first network
	onLAN   []*lab.Pod // of the second
}

// agentHealth is where, inside a node, its fairlead node says how it is.
const agentHealth = "127.0.0.1:10246"

func newOutage(t *testing.T) *outage {
	t.Helper()
	o := &outage{cluster: cluster{t: t}, lan: map[*lab.Node]string{}}
	o.Lab = labtest.New(t, lab.Options{Nodes: 3, Routed: true, Mode: "iptables", BinDir: programs.Dir(t), Source: o.source})
	t.Cleanup(o.logAgents)
	for _, n := range o.Nodes[:2] {
		o.lan[n] = filepath.Join(t.TempDir(), "lan.conflist")
		o.must(os.WriteFile(o.lan[n], []byte(fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "lan", "plugins": [{"type": "fairlead-cni", "mode": "macvlan", "master": "eth0",
			"ipam": {"type": "fairlead-ipam", "dataDir": %q, "pools": ["lan"]}}]}`, n.IPAMData())), 0o600))
	}
	var pods []*lab.Pod
	for i, n := range o.Nodes {
		pods = append(pods, labtest.AddPod(t, o.Lab, n, fmt.Sprint("pod-", i+1)))
	}
	for _, to := range pods[1:] { // directly, by a tunnel
		for _, addr := range to.Addrs {
			o.streams = append(o.streams, traffic.NewStream(t, pods[0].NS(), to.NS(), netip.AddrPortFrom(addr, 9999)))
		}
	}
	return o
}

// source starts the API server, which knows of the nodes and of a pool.
func (o *outage) source(ctx context.Context, l *lab.Lab) (lab.Sources, error) {
	kubeconfig, err := o.startAPIServer(ctx, l.Outside())
	if err != nil {
		return lab.Sources{}, err
	}
	if o.client, err = dynamic.NewForConfig(o.api.Config()); err != nil {
		return lab.Sources{}, err
	}
	installCRDs(o.t, o.client)
	o.grantPools()
	lan := ipPool("lan", map[string]any{"subnet": "192.168.244.0/24", "rangeStart": "192.168.244.64", "blockSize": int64(28)})
	if _, err := o.client.Resource(pools).Create(ctx, lan, metav1.CreateOptions{}); err != nil {
		return lab.Sources{}, err
	}
	for _, n := range append(l.NodeObjects(), member(91, 91), member(92, 92)) {
		o.createNode(n)
	}
	return lab.Sources{
		Proxy: []string{"--kubeconfig", kubeconfig},
		Agent: []string{"--kubeconfig", kubeconfig, "--healthz-bind-address", agentHealth},
	}, nil
}

// grantPools gives whom the tests' kubeconfig names the rights of fairlead node.
func (c *cluster) grantPools() {
	c.t.Helper()
	const role = "fairlead-node"
	for _, o := range manifestFile(c.t, "cni-only.yaml") {
		if o.GetKind() == "ClusterRole" {
			apply(c.t, c.api, []*unstructured.Unstructured{o}, false)
		}
	}
	_, err := c.api.Client.RbacV1().ClusterRoleBindings().Create(c.t.Context(), &rbac.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role},
		RoleRef:    rbac.RoleRef{APIGroup: rbac.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbac.Subject{{APIGroup: rbac.GroupName, Kind: rbac.UserKind, Name: "system:kube-proxy"}},
	}, metav1.CreateOptions{})
	c.must(err)
}

// member is a node of the lab's first link, by the last part of its addresses, with the
// ranges of a number.
func member(host, ranges int) *corev1.Node {
	n := node(fmt.Sprint("node-", host), fmt.Sprint("192.168.244.", host), fmt.Sprintf("10.244.%d.0/24", ranges))
	n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, fmt.Sprintf("fd00:10:244:%d::/64", ranges))
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: fmt.Sprint("fd00:192:168:244::", host)})
	return n
}

// addPods makes a pod on each node, and some more of the second network: as many as are
// said on node-1, one on node-2.
func (o *outage) addPods(when string, onFirst int) {
	o.t.Helper()
	add := func(n *lab.Node, conflist string) *lab.Pod {
		p, err := o.AddPodOf(o.t.Context(), n, fmt.Sprintf("%s-%d", when, len(o.routed)+len(o.onLAN)), conflist)
		o.must(err)
		return p
	}
	for _, n := range o.Nodes {
		o.routed = append(o.routed, add(n, n.CNIConfig()))
	}
	for range onFirst {
		o.onLAN = append(o.onLAN, add(o.Nodes[0], o.lan[o.Nodes[0]]))
	}
	o.onLAN = append(o.onLAN, add(o.Nodes[1], o.lan[o.Nodes[1]]))
}

// checkPods checks that all pods have addresses of their own, and answer.
func (o *outage) checkPods() {
	o.t.Helper()
	holder := map[netip.Addr]string{}
	for _, p := range append(o.routed, o.onLAN...) {
		for _, a := range p.Addrs {
			if other, twice := holder[a]; twice {
				o.t.Errorf("%s and %s have the address %s", other, p.Name, a)
			}
			holder[a] = p.Name
		}
	}
	for _, p := range o.routed {
		for _, from := range o.routed[:3] { // one of each node
			o.checkAnswer(p, from.Ask)
		}
	}
	for _, p := range o.onLAN {
		o.checkAnswer(p, func(ctx context.Context, at echo.Endpoint) (reply echo.Reply, err error) {
			err = o.Outside().Do(func() (err error) {
				reply, err = echo.Ask(ctx, at.Network, netip.AddrPort{}, at.Addr)
				return err
			})
			return reply, err
		})
	}
}

// checkAnswer checks that a pod answers over TCP at all its addresses.
func (o *outage) checkAnswer(p *lab.Pod, ask func(context.Context, echo.Endpoint) (echo.Reply, error)) {
	o.t.Helper()
	for _, at := range p.Endpoints() {
		if at.Network != "tcp" {
			continue
		}
		ctx, cancel := context.WithTimeout(o.t.Context(), 15*time.Second)
		reply, err := ask(ctx, at)
		cancel()
		if err != nil || reply.Name != p.Name {
			o.t.Errorf("%s at %s: answer of %q, %v", p.Name, at.Addr, reply.Name, err)
		}
	}
}

// routes are those of all nodes to others.
func (o *outage) routes() string {
	o.t.Helper()
	var all strings.Builder
	for _, n := range o.Nodes {
		fmt.Fprintf(&all, "%s:\n%s", n.Name, o.routesOf(n))
	}
	return all.String()
}

func (o *outage) routesOf(n *lab.Node) string {
	o.t.Helper()
	text, err := n.Output(o.t.Context(), "sh", "-ec", "ip route show table all proto 250; ip -6 route show table all proto 250")
	o.must(err)
	return text
}

// untilRoutes waits until a node has a route, or has it no more.
func (o *outage) untilRoutes(n *lab.Node, there bool, route string) {
	o.t.Helper()
	o.await(fmt.Sprintf("%s: route %s: %t", n.Name, route, there), func() bool { return strings.Contains(o.routesOf(n), route) == there })
}

func (o *outage) await(what string, holds func() bool) {
	o.t.Helper()
	for end := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("not within two minutes: %s; routes:\n%s", what, o.routes())
		}
	}
}

// untilStale waits until all nodes say that the cluster is not followed.
func (o *outage) untilStale() {
	o.t.Helper()
	for _, n := range o.Nodes {
		o.await("status of "+n.Name, func() bool { return o.stale(n) != "" })
		o.await("log of "+n.Name, func() bool {
			text, err := n.AgentLog()
			o.must(err)
			return strings.Contains(text, "the API server is not followed")
		})
	}
}

// untilUnhealthy waits until all nodes are not healthy, which is some time later.
func (o *outage) untilUnhealthy() {
	o.t.Helper()
	for _, n := range o.Nodes {
		o.await("health of "+n.Name, func() bool { return strings.Contains(o.healthz(n), "watch ") })
	}
}

// healthz is what a node's fairlead node answers.
func (o *outage) healthz(n *lab.Node) string {
	text, err := n.NS().Get(o.t.Context(), "http://"+agentHealth+"/healthz")
	if err != nil { // it has just been started
		return err.Error()
	}
	return text
}

// stale is why fairlead node does not follow, by 'fairlead status'.
func (o *outage) stale(n *lab.Node) string {
	o.t.Helper()
	// The exit code says whether all is well.
	args := append([]string{"-c", `"$@" || test $? = 1`, "sh", filepath.Join(programs.Dir(o.t), "fairlead"), "status", "-o", "json"}, n.StatusFlags()...)
	text, err := n.Output(o.t.Context(), "sh", args...)
	o.must(err)
	text, _, _ = strings.Cut(text, "\nfairlead: ") // on the standard error
	var status struct{ Pods struct{ Stale string } }
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		o.t.Fatalf("%v: %s", err, text)
	}
	return status.Pods.Stale
}

// blocksOf is how many blocks a node has leased.
func (o *outage) blocksOf(node string) (count int) {
	o.t.Helper()
	list, err := o.client.Resource(blocks).List(o.t.Context(), metav1.ListOptions{})
	o.must(err)
	for _, b := range list.Items {
		if name, _, _ := unstructured.NestedString(b.Object, "spec", "node"); name == node {
			count++
		}
	}
	return count
}

func (o *outage) logAgents() {
	if !o.t.Failed() {
		return
	}
	for _, n := range o.Nodes {
		text, err := n.AgentLog()
		o.t.Logf("log of fairlead node on %s: %v\n%s", n.Name, err, text)
	}
}
