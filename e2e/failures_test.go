package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/traffic"
)

// What is wrong with one node, or at one node, is said once in the log of those who
// are concerned and counted in their metrics, and no packet between others is lost.
func TestRoutedFailures(t *testing.T) {
	l, pods := routed(t)
	streams := []*traffic.Stream{
		stream(t, pods[0], pods[1], pods[1].IPv4()), // direct
		stream(t, pods[0], pods[2], pods[2].IPv4()), // VXLAN
		stream(t, pods[0], pods[2], pods[2].IPv6()),
	}
	first := l.Nodes[0]
	second := l.Nodes[1]
	tests := []struct {
		name  string
		wrong func(t *testing.T) (mend func())
		at    *lab.Node // who says so
		kind  string
		text  string
	}{
		{
			"pod CIDR of another node", applies(l, clusterNode("node-x", "192.168.244.90", "10.244.2.128/25")),
			first, "PodCIDROverlapsNode", "node node-x: its pod CIDR 10.244.2.128/25 overlaps 10.244.2.0/24 of node node-2: it is not reached",
		},
		{
			"pod CIDR on the underlay", applies(l, clusterNode("node-x", "192.168.244.90", "192.168.244.64/26")),
			first, "PodCIDROverlapsLink", "node node-x: its pod CIDR 192.168.244.64/26 overlaps 192.168.244.0/24, which is on a link of this node: it is not reached",
		},
		{
			"pod CIDR among Services", applies(l, clusterNode("node-x", "192.168.244.90", "10.97.3.0/24"), serviceCIDR("10.97.0.0/16")),
			first, "PodCIDROverlapsServices", "node node-x: its pod CIDR 10.97.3.0/24 overlaps 10.97.0.0/16, in which Services are: it is not reached",
		},
		{
			"no pod CIDR", applies(l, clusterNode("node-x", "192.168.244.90")),
			first, "NoPodCIDR", "node node-x: it has no pod CIDR: no pods can run on it",
		},
		{
			"VXLAN port taken", func(t *testing.T) func() { return takePort(t, second) },
			second, "VXLANPortTaken", "node node-2: set fairlead-vx4 up: UDP port 4789 is taken by another program: address already in use",
		},
		{
			"IPv6 disabled", func(t *testing.T) func() { return disableIPv6(t, second) },
			second, "IPv6Disabled", "node node-2: IPv6 is disabled in its kernel (net.ipv6.conf.all.disable_ipv6): pods of other nodes are not reached over IPv6",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mend := tt.wrong(t)
			awaitLog(t, tt.at, fmt.Sprintf("msg=problem kind=%s problem=%q", tt.kind, tt.text))
			awaitMetric(t, tt.at, fmt.Sprintf("fairlead_node_problems{kind=%q} 1", tt.kind))
			for _, s := range streams {
				s.AwaitMore(t, 100)
			}
			if got := strings.Count(agentLog(t, tt.at), fmt.Sprintf("problem=%q", tt.text)); got != 1 {
				t.Errorf("%d lines of log, want 1:\n%s", got, agentLog(t, tt.at))
			}
			mend()
			awaitLog(t, tt.at, fmt.Sprintf("msg=mended kind=%s problem=%q", tt.kind, tt.text))
		})
	}
	for _, s := range streams {
		s.End(t)
	}
	// All is as before, over IPv6 to the second node too.
	mesh(t, pods, func(from, to *lab.Pod, _ int) error { return askAll(t.Context(), from, to) })
}

func clusterNode(name, addr string, podCIDRs ...string) *corev1.Node {
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}}},
	}
	if len(podCIDRs) > 0 {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = podCIDRs[0], podCIDRs
	}
	return n
}

func serviceCIDR(cidr string) *networking.ServiceCIDR {
	return &networking.ServiceCIDR{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "ServiceCIDR"},
		ObjectMeta: metav1.ObjectMeta{Name: "services"},
		Spec:       networking.ServiceCIDRSpec{CIDRs: []string{cidr}},
	}
}

// applies has objects in the cluster until they are taken back.
func applies(l *lab.Lab, objects ...lab.Object) func(t *testing.T) func() {
	return func(t *testing.T) func() {
		t.Helper()
		if err := l.Apply(objects...); err != nil {
			t.Fatal(err)
		}
		return func() {
			if err := l.Delete(objects...); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// takePort has somebody else listen where VXLAN does.
func takePort(t *testing.T, n *lab.Node) (mend func()) {
	t.Helper()
	if _, err := n.Output(t.Context(), "ip", "link", "set", "fairlead-vx4", "down"); err != nil {
		t.Fatal(err)
	}
	// Until the socket is there fairlead node may have been faster.
	var taken net.PacketConn
	for deadline := time.Now().Add(time.Minute); taken == nil; {
		if _, err := n.Output(t.Context(), "sh", "-c", "ip link del fairlead-vx4 2>&1 || true"); err != nil {
			t.Fatal(err)
		}
		err := n.NS().Do(func() (err error) {
			taken, err = net.ListenPacket("udp4", ":4789")
			return err
		})
		if err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = taken.Close() })
	return func() { _ = taken.Close() }
}

func disableIPv6(t *testing.T, n *lab.Node) (mend func()) {
	t.Helper()
	run := func(script string) {
		t.Helper()
		if _, err := n.Output(t.Context(), "sh", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
	addrs, err := n.Output(t.Context(), "sh", "-ec", `for dev in eth0 cni0; do
		ip -6 -o addr show dev $dev scope global | awk '{print "ip addr add "$4" dev "$2" nodad"}'; done
		ip -6 route show default | awk '{print "ip -6 route add default via "$3}'`)
	if err != nil {
		t.Fatal(err)
	}
	run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
	return func() { run("sysctl -qw net.ipv6.conf.all.disable_ipv6=0\n" + addrs) }
}

func agentLog(t *testing.T, n *lab.Node) string {
	t.Helper()
	text, err := n.AgentLog()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func awaitLog(t *testing.T, n *lab.Node, line string) {
	t.Helper()
	eventually(t, func() error {
		if text := agentLog(t, n); !strings.Contains(text, line) {
			return fmt.Errorf("no %s in the log of %s:\n%s", line, n.Name, text)
		}
		return nil
	})
}

func awaitMetric(t *testing.T, n *lab.Node, line string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = n.NS().Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}}
	eventually(t, func() error {
		response, err := client.Get("http://" + lab.AgentMetrics + "/metrics")
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		if err == nil && !strings.Contains(string(text), line) {
			err = fmt.Errorf("no %s in the metrics of %s:\n%s", line, n.Name, text)
		}
		return err
	})
}

// eventually waits until something holds.
func eventually(t *testing.T, holds func() error) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		err := holds()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
