package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/netns"
)

// What becomes of a node's proxy is nothing to who has a connection, and nothing to
// who makes one.
func TestTrafficThroughRestarts(t *testing.T) {
	c := newCluster(t, 2, "ebpf")
	outside := c.nodePorts(t, 30080)
	for _, step := range []struct {
		name   string
		signal unix.Signal
		mode   string
		flags  []string
		// left is a part of the names of connections that may wait, or fail: see
		// docs/packets.md.
		left string
	}{
		{name: "killed", signal: unix.SIGKILL, mode: "ebpf"},
		{name: "ended", signal: unix.SIGTERM, mode: "ebpf"},
		{name: "maps of other sizes", signal: unix.SIGTERM, mode: "ebpf", flags: []string{"--map-size", "frontends=1000,backends=4000,flows=100000,datagrams=5000"}, left: " new"},
		{name: "to iptables", signal: unix.SIGTERM, mode: "iptables", left: "sctp"},
		{name: "and back", signal: unix.SIGTERM, mode: "ebpf"},
		{name: "to iptables, killed", signal: unix.SIGKILL, mode: "iptables", left: "sctp"},
		{name: "and back, killed", signal: unix.SIGKILL, mode: "ebpf"},
	} {
		t.Run(step.name, func(t *testing.T) {
			tr := c.startTraffic(t, outside)
			c.restart(t, step.signal, step.mode, step.flags)
			tr.goOn(t, step.left)
			tr.end(t, step.left)
		})
	}
}

// nodePorts makes the Service reachable from outside, and says where.
func (c cluster) nodePorts(t *testing.T, port int32) []echo.Endpoint {
	t.Helper()
	web := lab.NewService("web", "10.96.0.10", "fd00:10:96::10")
	web.Spec.Type = corev1.ServiceTypeNodePort
	var at []echo.Endpoint
	for i := range web.Spec.Ports {
		p := &web.Spec.Ports[i]
		p.NodePort = port
		at = append(at, echo.Endpoint{Network: strings.ToLower(string(p.Protocol)), Addr: netip.AddrPortFrom(c.Nodes[0].Addrs[0], uint16(port))})
	}
	if err := c.Apply(web); err != nil {
		t.Fatal(err)
	}
	for _, to := range at {
		if _, err := until(t, func() (echo.Reply, error) { return askIn(t.Context(), c.Outside(), to, time.Second) }); err != nil {
			t.Fatal(err)
		}
	}
	return at
}

// until asks until there is an answer.
func until(t *testing.T, ask func() (echo.Reply, error)) (echo.Reply, error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		reply, err := ask()
		if err == nil || time.Now().After(deadline) {
			return reply, err
		}
	}
}

func askIn(ctx context.Context, ns *netns.NS, to echo.Endpoint, timeout time.Duration) (reply echo.Reply, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = ns.Do(func() error {
		reply, err = echo.Ask(ctx, to.Network, netip.AddrPort{}, to.Addr)
		return err
	})
	return reply, err
}

// restart ends the proxy of the first node and waits until another one has programmed
// the kernel.
func (c cluster) restart(t *testing.T, signal unix.Signal, mode string, flags []string) {
	t.Helper()
	node := c.Nodes[0]
	before, err := node.ProxyLog() // of all proxies that the node has had
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RestartProxy(node, signal, mode, flags...); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		log, err := node.ProxyLog()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(log[len(before):], "msg=synced") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the proxy does not program the kernel:\n%s", log)
		}
	}
}

// traffic is connections that last, and others that are made all the time: from a pod
// to virtual IPs, by its sockets, and from outside to node ports, by packets.
type traffic struct {
	stop context.CancelFunc
	all  sync.WaitGroup

	mu      sync.Mutex     // guards what follows
	asked   map[string]int // kind → answers
	failed  map[string][]string
	waiting map[string]int // kind → datagrams that had to be sent again
}

// patience is how long an answer may take: the machine is small, and its kernels
// retransmit.
const patience = 15 * time.Second

func (c cluster) startTraffic(t *testing.T, outside []echo.Endpoint) *traffic {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	tr := &traffic{stop: stop, asked: map[string]int{}, failed: map[string][]string{}, waiting: map[string]int{}}
	for _, from := range []struct {
		name string
		ns   *netns.NS
		to   []echo.Endpoint
	}{{"pod", c.client.NS(), c.vips}, {"outside", c.Outside(), outside}} {
		for _, to := range from.to {
			kind := fmt.Sprintf("%s %s %s", to.Network, from.name, to.Addr)
			lasting := newSession(t, from.ns, to)
			tr.all.Go(func() { tr.last(ctx, kind+" lasting", lasting) })
			tr.all.Go(func() { tr.open(ctx, kind+" new", from.ns, to) })
		}
	}
	tr.goOn(t, "")
	return tr
}

func newSession(t *testing.T, ns *netns.NS, to echo.Endpoint) *echo.Session {
	t.Helper()
	var session *echo.Session
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := ns.Do(func() (err error) {
		session, err = echo.Open(ctx, to.Network, netip.AddrPort{}, to.Addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// last asks on one connection, which has one backend.
func (tr *traffic) last(ctx context.Context, kind string, session *echo.Session) {
	defer func() { _ = session.Close() }()
	name := ""
	for ctx.Err() == nil {
		began := time.Now()
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		reply, err := session.Ask(asking)
		cancel()
		if name == "" {
			name = reply.Name
		}
		if err == nil && reply.Name != name {
			err = fmt.Errorf("answered by %s after %s", reply.Name, name)
		}
		tr.note(kind, time.Since(began), err)
		if err != nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// open makes connections, one after the other.
func (tr *traffic) open(ctx context.Context, kind string, ns *netns.NS, to echo.Endpoint) {
	for ctx.Err() == nil {
		began := time.Now()
		_, err := askIn(context.WithoutCancel(ctx), ns, to, patience)
		tr.note(kind, time.Since(began), err)
		time.Sleep(5 * time.Millisecond)
	}
}

func (tr *traffic) note(kind string, took time.Duration, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.asked[kind]++
	if err != nil {
		tr.failed[kind] = append(tr.failed[kind], err.Error())
	} else if took >= time.Second {
		tr.waiting[kind]++
	}
}

// goOn waits until everybody has been answered some more times, but for those that
// may wait.
func (tr *traffic) goOn(t *testing.T, left string) {
	t.Helper()
	count := func() map[string]int {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		return maps.Clone(tr.asked)
	}
	before := count()
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(10 * time.Millisecond) {
		now, slow := count(), ""
		for kind, n := range now {
			if n < before[kind]+5 && !mayWait(kind, left) {
				slow = kind
			}
		}
		if slow == "" && len(now) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: %d answers in all, no more than %d for a while", slow, now[slow], before[slow]+5)
			return
		}
	}
}

func mayWait(kind, left string) bool { return left != "" && strings.Contains(kind, left) }

// end stops it and looks at what failed, but for connections that may.
func (tr *traffic) end(t *testing.T, left string) {
	t.Helper()
	tr.stop()
	tr.all.Wait()
	total := 0
	for _, kind := range slices.Sorted(maps.Keys(tr.asked)) {
		total += tr.asked[kind]
		if failed := tr.failed[kind]; len(failed) > 0 {
			say := t.Errorf
			if mayWait(kind, left) {
				say = t.Logf
			}
			say("%s: %d of %d failed, the first: %s", kind, len(failed), tr.asked[kind], failed[0])
		}
		if n := tr.waiting[kind]; n > 0 {
			t.Logf("%s: %d of %d waited for a second or more", kind, n, tr.asked[kind])
		}
	}
	t.Logf("%d answers", total)
}

// A pod that is made while no proxy runs is served all the same, by packets too, from
// its first one on: the plugin attaches what the proxy has pinned.
func TestNewPodWithoutProxy(t *testing.T) {
	c := newCluster(t, 1, "ebpf")
	kill(t, c.State().Nodes[0].Proxy)
	late, err := c.AddPod(t.Context(), c.Nodes[0], "late")
	if err != nil {
		t.Fatal(err)
	}
	for _, vip := range c.vips {
		reply, err := late.Ask(t.Context(), vip)
		if err != nil || !strings.HasPrefix(reply.Name, "web-") {
			t.Errorf("%s %s: answered by %q, %v", vip.Network, vip.Addr, reply.Name, err)
		}
	}
}

// cleanup leaves nothing of the proxy: no program, no pin, no rule.
func TestCleanupOfEBPF(t *testing.T) {
	c := newCluster(t, 1, "ebpf")
	node := c.Nodes[0]
	kill(t, c.State().Nodes[0].Proxy)
	if packets, sockets := attached(t, node); packets == 0 || sockets == 0 {
		t.Errorf("before: %d programs for packets, %d for sockets", packets, sockets)
	}
	for range 2 {
		if _, err := node.Output(t.Context(), filepath.Join(programs.Dir(t), "fairlead"), "cleanup", "--bpf-root", node.BPFRoot(),
			"--cni-conf-dir", t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if packets, sockets := attached(t, node); packets > 0 || sockets > 0 {
		t.Errorf("left: %d programs for packets, %d for sockets", packets, sockets)
	}
	if _, err := os.Stat(node.BPFRoot()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pins' folder is there: %v", err)
	}
	if rules, err := node.Output(t.Context(), "iptables-save"); err != nil || strings.Contains(rules, "FAIRLEAD") {
		t.Errorf("rules: %s, %v", rules, err)
	}
}

// attached counts the programs at the links of a node, and at its cgroup.
func attached(t *testing.T, node *lab.Node) (packets, sockets int) {
	t.Helper()
	count := func(target int, attach ebpf.AttachType) int {
		found, err := link.QueryPrograms(link.QueryOptions{Target: target, Attach: attach})
		if err != nil {
			t.Fatal(err)
		}
		return len(found.Programs)
	}
	err := node.NS().Do(func() error {
		links, err := net.Interfaces()
		for _, l := range links {
			packets += count(l.Index, ebpf.AttachTCXIngress) + count(l.Index, ebpf.AttachTCXEgress)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	folder, err := os.Open(node.Cgroup())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = folder.Close() }()
	for _, attach := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect, ebpf.AttachCgroupInetSockRelease} {
		sockets += count(int(folder.Fd()), attach)
	}
	return packets, sockets
}
