package faults

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/fairlead/fairlead/e2e/echo"
	"github.com/fairlead/fairlead/e2e/lab"
	"github.com/fairlead/fairlead/e2e/lab/labtest"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/e2e/traffic"
)

var ownMachine = flag.Bool("own-machine", false, "this machine is for the test alone: its clock and its kernel's limits are changed")

// TestMachine does what all of a machine suffers from. e2e/vm has machines for it.
func TestMachine(t *testing.T) {
	if !*ownMachine {
		t.Skip("without -own-machine: it sets the clock, and how many flows are tracked in all namespaces")
	}
	for _, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := newCluster(t, 2, mode)
			for i := range c.sources {
				c.sources[i].Pause = 100 * time.Millisecond // the machine is emulated
			}
			t.Run("clock jumps", c.clockJumps)
			t.Run("connection tracking full", c.trackingFull)
		})
	}
}

// clockJumps sets the clock an hour ahead and back, and an hour back and ahead. Flows go
// on, clients keep their endpoints that have them for less than that, and what changes
// meanwhile is programmed.
func (c cluster) clockJumps(t *testing.T) {
	sticky := c.newSticky(t, 30*time.Minute)
	node := c.Nodes[0]
	began, err := node.ProxyLog()
	if err != nil {
		t.Fatal(err)
	}
	tr := traffic.Start(t, c.sources...)
	for i, by := range []time.Duration{time.Hour, -time.Hour, -time.Hour, time.Hour} {
		jump(t, by)
		tr.GoOn(t)
		sticky.check(t)
		c.follows(t, fmt.Sprintf("jump-%d", i))
		if text, err := get(t.Context(), node, "http://127.0.0.1:10256/healthz"); err != nil || !strings.Contains(text, `"healthy":true`) {
			t.Errorf("after a jump by %s: %s, %v", by, text, err)
		}
	}
	tr.GoOn(t)
	tr.End(t)
	log, err := node.ProxyLog()
	if err != nil || strings.Contains(log[len(began):], "level=ERROR") {
		t.Errorf("the proxy's log (%v):\n%s", err, log[len(began):])
	}
}

// follows has an endpoint and a node come and go, and waits until the first node's
// programs know.
func (c cluster) follows(t *testing.T, name string) {
	t.Helper()
	late := labtest.AddPod(t, c.Lab, c.Nodes[0], name)
	if err := c.Apply(lab.Slices(c.Service, append(c.Web[:len(c.Web):len(c.Web)], late)...)...); err != nil {
		t.Fatal(err)
	}
	write(t, c.Nodes[0], "late.yaml", nodesText(1))
	c.awaitAnswer(t, name)
	c.awaitRoute(t, true)
	if err := c.Apply(lab.Slices(c.Service, c.Web...)...); err != nil {
		t.Fatal(err)
	}
	write(t, c.Nodes[0], "late.yaml", "")
	c.awaitRoute(t, false)
}

// jump sets the clock, as an operator or a time server that is wrong does it.
func jump(t *testing.T, by time.Duration) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	now.Sec += int64(by / time.Second)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
}

// sticky is a Service whose clients keep their endpoint for some time, asked by a pod at
// virtual IPs and from outside at node ports.
type sticky struct {
	sources []traffic.Source
	keep    map[string]string // who asks where → who answers
}

func (c cluster) newSticky(t *testing.T, lasts time.Duration) *sticky {
	t.Helper()
	const port = 30090
	svc := lab.NewService("sticky", "10.96.0.20", "fd00:10:96::20")
	seconds := int32(lasts.Seconds())
	svc.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	svc.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	if err := c.Apply(lab.Slices(svc, c.Web...)...); err != nil {
		t.Fatal(err)
	}
	of := labtest.Cluster{Lab: c.Lab, Service: svc}
	s := &sticky{keep: map[string]string{}, sources: []traffic.Source{
		{Name: "outside", NS: c.Outside(), To: of.NodePorts(t, port)},
		{Name: "pod", NS: c.Client.NS(), To: lab.VIPs(svc)},
	}}
	if err := c.WaitReady(t.Context(), svc); err != nil {
		t.Fatal(err)
	}
	s.check(t)
	return s
}

// check asks everybody some times.
func (s *sticky) check(t *testing.T) {
	t.Helper()
	for range 3 {
		for _, from := range s.sources {
			for _, to := range from.To {
				name, err := answerer(t.Context(), from.NS, to)
				who := fmt.Sprintf("%s asks %s %s", from.Name, to.Network, to.Addr)
				if kept := s.keep[who]; err != nil || kept != "" && kept != name {
					t.Errorf("%s, whom %s answered: %s, %v", who, kept, name, err)
				}
				s.keep[who] = name
			}
		}
	}
}

// answerer is the name of who answers.
func answerer(ctx context.Context, ns *netns.NS, to echo.Endpoint) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	err = ns.Do(func() error {
		reply, err := echo.Ask(ctx, to.Network, netip.AddrPort{}, to.Addr)
		name = reply.Name
		return err
	})
	return name, err
}

// trackingFull has the kernel's connection tracking be full: flooded by flows that nobody
// means, and then with no room at all. What is tracked goes on in each mode: also in mode
// ebpf the kernel tracks what pods send, for the masquerading of fairlead node. Where
// there is none it tracks nothing, and nothing fails.
func (c cluster) trackingFull(t *testing.T) {
	t.Run("tracked", c.tracked)
	if c.mode == "ebpf" {
		t.Run("untracked", c.untracked)
	}
}

func (c cluster) tracked(t *testing.T) {
	node := c.Nodes[0]
	lasting := traffic.StartLasting(t, c.sources...)
	impatient := slices.Clone(c.sources)
	for i := range impatient {
		impatient[i].Patience = 5 * time.Second // to wait for longer tells no more
	}
	fresh := traffic.StartNew(t, 50, impatient...)
	time.Sleep(4 * time.Second) // UDP flows that are younger than two seconds give way to others
	before := metric(t, node, proxyMetrics, dropped)
	log, err := node.ProxyLog()
	if err != nil {
		t.Fatal(err)
	}
	asked, failed := fresh.Count()

	restore := limitTracking(t, 1024)
	c.floodTracking(t)
	lasting.GoOn(t)
	flooded, floodFailed := fresh.Count()
	t.Logf("flooded: of %d new flows %d failed, %d packets were dropped", flooded-asked, floodFailed-failed, metric(t, node, proxyMetrics, dropped)-before)

	limitTracking(t, 1)
	eventually(t, func() error {
		if _, now := fresh.Count(); now == floodFailed {
			return fmt.Errorf("no new flow fails, though none can be tracked")
		}
		return nil
	})
	lasting.GoOn(t)
	c.isTold(t, log)
	restore()
	// Before, asking for metrics may itself be a flow that has no room.
	if now := metric(t, node, proxyMetrics, dropped); now == before {
		t.Errorf("%s is still %d", dropped, now)
	}
	fresh.Stop()
	lasting.End(t)
	after := traffic.Start(t, c.sources...)
	after.End(t)
}

func (c cluster) untracked(t *testing.T) {
	for _, n := range c.Nodes {
		if err := c.RestartAgent(n, "--masquerade", "none"); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() error {
			rules, err := n.Output(t.Context(), "nft", "list", "ruleset")
			if err == nil && strings.Contains(rules, "hook") {
				err = fmt.Errorf("%s has rules:\n%s", n.Name, rules)
			}
			return err
		})
	}
	tr := traffic.Start(t, c.sources...)
	restore := limitTracking(t, 1)
	c.floodTracking(t)
	tr.GoOn(t)
	restore()
	tr.End(t)
}

// floodTracking has more flows begin than are tracked after limitTracking.
func (c cluster) floodTracking(t *testing.T) {
	t.Helper()
	c.Outside().RunT(t, "ip", "route", "replace", "blackhole", liars.String())
	flood(t, c.Outside(), unix.IPPROTO_UDP, first(c.sources[1].To, "udp"), size(5000, 150_000))
}

const dropped = "fairlead_conntrack_dropped_packets_total"

// isTold wants it told, while flows cannot begin, that they cannot: in the log, and to
// who asks the doctor.
func (c cluster) isTold(t *testing.T, log string) {
	t.Helper()
	node := c.Nodes[0]
	eventually(t, func() error { return tells(node, log, "connection tracking has no room for their flows") })
	// Its exit code says that something is wrong.
	text, _ := node.Output(t.Context(), filepath.Join(programs.Dir(t), "fairlead"), "doctor")
	if told := "packets dropped that could not be tracked"; !strings.Contains(text, told) {
		t.Errorf("fairlead doctor does not say %q:\n%s", told, text)
	}
}

// limitTracking has the kernel track so many flows in each namespace, in as many buckets,
// as it has them by default: in a longer table it finds too few near a new flow to make
// room for that.
func limitTracking(t *testing.T, flows int) (restore func()) {
	t.Helper()
	set := func(path, to string) (was string) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, []byte(to), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	const limit, buckets = "/proc/sys/net/netfilter/nf_conntrack_max", "/sys/module/nf_conntrack/parameters/hashsize"
	many := set(buckets, fmt.Sprint(max(flows, 1024)))
	most := set(limit, fmt.Sprint(flows))
	restore = func() { t.Helper(); set(buckets, many); set(limit, most) }
	t.Cleanup(restore) // for who comes after a test that fails
	return restore
}
