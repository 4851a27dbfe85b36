package bpf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	gosync "sync"
	"syscall"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

const (
	changesPerSecond     = 50
	connectionsPerSecond = 200
	churnBackends        = 5
	// grace is how long after a removal is in the kernel a datagram may still go to
	// who was removed.
	grace = 10 * time.Millisecond
)

// TestChurn removes and adds backends all the time while connections are made and
// datagrams sent. It lasts some seconds, or as long as FAIRLEAD_CHURN says (1m).
func TestChurn(t *testing.T) {
	lasts := 5 * time.Second
	if text := os.Getenv("FAIRLEAD_CHURN"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	c := newChurn(t)
	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	var all gosync.WaitGroup
	for _, run := range []func(context.Context) error{c.connect, c.sendConnected, c.sendUnconnected} {
		all.Go(func() {
			if err := c.node.Do(func() error { return run(ctx) }); err != nil {
				t.Error(err)
			}
		})
	}
	c.change(ctx, t)
	all.Wait()
	t.Logf("%d changes, %d connections, %d datagrams, %d sockets ended", c.changes, c.connections, c.datagrams, c.ended)
	if c.late > 0 || c.failed != nil {
		t.Errorf("%d datagrams to removed backends, connections: %v", c.late, c.failed)
	}
	if c.ended == 0 || c.changes == 0 || c.connections == 0 {
		t.Error("nothing was tried")
	}
}

// churn is a node with a Service, whose backends are addresses of its loopback.
type churn struct {
	node     *netns.NS
	backend  *Backend
	resolver *service.Resolver
	addrs    []netip.Addr

	mu          gosync.Mutex               // guards what follows
	removed     map[netip.Addr][]time.Time // in turn: out of the kernel, about to come back
	changes     int
	connections int
	datagrams   int
	ended       int // sockets of datagrams
	late        int // datagrams to a removed backend
	failed      []error
}

var churnVIP = netip.MustParseAddrPort("10.96.0.10:80")

func newChurn(t *testing.T) *churn {
	t.Helper()
	c := &churn{node: netns.NewT(t), removed: map[netip.Addr][]time.Time{}}
	group := cgroup.NewT(t)
	c.node.Join(group)
	c.node.RunT(t, "ip", "link", "set", "lo", "up")
	inhabit(t, c.node)
	for i := range churnBackends {
		a := netip.AddrFrom4([4]byte{10, 200, 0, byte(i + 1)})
		c.addrs = append(c.addrs, a)
		c.node.RunT(t, "ip", "address", "add", a.String()+"/32", "dev", "lo")
		c.serve(t, netip.AddrPortFrom(a, 8080))
	}
	c.resolver = service.NewResolver(service.Config{NodeName: "n1"})
	name := service.Name{Namespace: "default", Name: "web"}
	c.resolver.Apply(service.Update{Services: map[service.Name]*service.Service{name: {
		Name: name, ClusterIPs: []netip.Addr{churnVIP.Addr()},
		Ports: []service.ServicePort{
			{Port: service.Port{Name: "tcp", Protocol: service.TCP, Number: 80}},
			{Port: service.Port{Name: "udp", Protocol: service.UDP, Number: 80}},
		},
	}}})
	c.resolver.Apply(c.slice(-1))
	c.backend = startIn(t, c.node, Config{Root: t.TempDir() + "/bpf", CgroupRoot: group.Path})
	sync(t, c.backend, c.resolver, service.Change{})
	return c
}

// inhabit has a process be in a namespace, as a pod has: by its processes the
// namespaces are found in which sockets are ended.
func inhabit(t *testing.T, ns *netns.NS) {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	if err := ns.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
}

// slice is the Service's endpoints but for one.
func (c *churn) slice(without int) service.Update {
	name := service.Name{Namespace: "default", Name: "web"}
	s := &service.Slice{Name: name, Service: "web", Ports: []service.Port{
		{Name: "tcp", Protocol: service.TCP, Number: 8080}, {Name: "udp", Protocol: service.UDP, Number: 8080},
	}}
	for i, a := range c.addrs {
		if i != without {
			s.Endpoints = append(s.Endpoints, service.Endpoint{Addr: a, Ready: true, Serving: true, Node: "n2"})
		}
	}
	return service.Update{Slices: map[service.Name]*service.Slice{name: s}}
}

// serve answers what comes with the address it came to.
func (c *churn) serve(t *testing.T, at netip.AddrPort) {
	t.Helper()
	var l *net.TCPListener
	var u *net.UDPConn
	err := c.node.Do(func() (err error) {
		if l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
			return err
		}
		u, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = l.Close(), u.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintln(conn, at.Addr())
			_ = conn.Close()
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			n, _, err := u.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.arrived(at.Addr(), string(buf[:n]))
		}
	}()
}

// arrived looks whether a datagram, which says when it was about to be sent, may be
// with a backend.
func (c *churn) arrived(at netip.Addr, text string) {
	sent, err := time.Parse(time.RFC3339Nano, text)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.datagrams++
	if err != nil {
		c.failed = append(c.failed, err)
	}
	times := c.removed[at]
	for i := 0; i < len(times); i += 2 {
		back := i+1 == len(times) || sent.Before(times[i+1])
		if sent.After(times[i].Add(grace)) && back {
			c.late++
		}
	}
}

// change takes a backend out and puts it back, one after the other.
func (c *churn) change(ctx context.Context, t *testing.T) {
	tick := time.NewTicker(time.Second / changesPerSecond)
	defer tick.Stop()
	note := func(at netip.Addr) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changes++
		c.removed[at] = append(c.removed[at], time.Now().Round(0))
	}
	for n := 0; ; n++ {
		one := n % churnBackends
		for _, without := range []int{one, -1} {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if without < 0 {
				note(c.addrs[one])
			}
			sync(t, c.backend, c.resolver, c.resolver.Apply(c.slice(without)))
			if without >= 0 {
				note(c.addrs[one])
			}
		}
	}
}

func (c *churn) connect(ctx context.Context) error {
	tick := time.NewTicker(time.Second / connectionsPerSecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := c.connectOnce()
		c.mu.Lock()
		c.connections++
		if err != nil {
			c.failed = append(c.failed, err)
		}
		c.mu.Unlock()
	}
}

func (c *churn) connectOnce() error {
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(churnVIP))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "10.200.0.") {
		err = fmt.Errorf("answered %q", line)
	}
	return err
}

// sendConnected sends by a socket that is connected, and connects anew when it is
// ended.
func (c *churn) sendConnected(ctx context.Context) error {
	for ctx.Err() == nil {
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(churnVIP))
		if err != nil {
			return err
		}
		for ctx.Err() == nil && err == nil {
			_, err = conn.Write(now())
			time.Sleep(time.Millisecond)
		}
		_ = conn.Close()
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, syscall.EDESTADDRREQ) {
			return err
		}
		c.mu.Lock()
		c.ended++
		c.mu.Unlock()
	}
	return nil
}

func (c *churn) sendUnconnected(ctx context.Context) error {
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	for ctx.Err() == nil {
		if _, err := conn.WriteToUDPAddrPort(now(), churnVIP); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

func now() []byte { return []byte(time.Now().Format(time.RFC3339Nano)) }
