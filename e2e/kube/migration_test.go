package kube_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// The steps of docs/migration.md, from the real kube-proxy to Fairlead and back: no
// new connection fails, those that are open stay, whoever led them, and at each end
// nothing is left of the other.
func TestMigration(t *testing.T) {
	for _, mode := range []string{"iptables", "ebpf"} {
		for _, variant := range []string{"nft", "legacy"} {
			t.Run(mode+"-"+variant, func(t *testing.T) { migrate(t, mode, variant) })
		}
	}
}

func migrate(t *testing.T, mode, variant string) {
	m := newMachine(t)
	m.populate()
	kubeconfig := m.kubeProxyKubeconfig()
	kubeProxy := func() *kube.Process {
		config := kube.KubeProxyConfig(service.Config{NodeName: "node-1"}, kubeconfig)
		return keep(t)(kube.StartKubeProxy(t.Context(), m.node, config, variant, t.TempDir()))
	}
	rules := func() bool {
		return strings.Contains(m.node.RunT(t, "iptables-"+variant+"-save", "-t", "nat"), "KUBE-SERVICES -d "+webIPv4+"/32")
	}
	old := kubeProxy()
	// Who asks before that is led past the Service for two minutes, and so is another
	// connection that gets the port in this time: kube-proxy leaves such flows.
	m.await("rules of kube-proxy", rules)
	m.awaitAnswer()
	traffic := m.startTraffic()
	traffic.open("through kube-proxy")

	m.must(old.Stop())
	dir := t.TempDir()
	flags := []string{"--bpf-root", filepath.Join(dir, "bpf"), "--cgroup-root", m.cgroup.Path, "--iptables-variant", variant}
	fairlead := filepath.Join(programs.Dir(t), "fairlead")
	cleanup := append([]string{fairlead, "cleanup", "--cni-conf-dir", dir}, flags...)
	// Before the proxy is started: it ends first, or would mend what is removed.
	t.Cleanup(func() { _ = m.node.Do(exec.Command(cleanup[0], cleanup[1:]...).Run) })
	proxy := keep(t)(kube.StartProcess(m.node, filepath.Join(dir, "fairlead.log"), exec.Command(fairlead, append([]string{"proxy", "--kubeconfig", kubeconfig,
		"--node-name", "node-1", "--mode", mode, "--inspect-socket", filepath.Join(dir, "proxy.sock")}, flags...)...)))
	m.await("synced", func() bool { return strings.Contains(proxy.Said(), "msg=synced") })
	traffic.check("beside what kube-proxy left")
	traffic.open("through Fairlead")
	said := m.node.RunT(t, fairlead, "cleanup", "--kube-proxy", "--yes")
	if !strings.Contains(said, "chains in iptables-"+variant) {
		t.Errorf("cleanup --kube-proxy says %q", said)
	}
	m.checkNothingOf("KUBE-SVC", "KUBE-SERVICES")
	traffic.check("with Fairlead alone")

	m.must(proxy.Stop())
	kubeProxy()
	m.await("rules of kube-proxy", rules)
	traffic.check("beside what Fairlead left")
	m.node.RunT(t, cleanup[0], cleanup[1:]...)
	m.checkNothingOf("FAIRLEAD", "fairlead")
	traffic.check("with kube-proxy alone")
	traffic.end()
}

// kubeProxyKubeconfig is for one with the rights of kube-proxy.
func (m *machine) kubeProxyKubeconfig() string {
	m.t.Helper()
	relay, err := m.api.NewRelay(relayPort)
	m.must(err)
	m.t.Cleanup(relay.Shut)
	path, err := m.api.Kubeconfig(relayPort)
	m.must(err)
	return path
}

// checkNothingOf looks whether netfilter has something of these names.
func (m *machine) checkNothingOf(names ...string) {
	m.t.Helper()
	for _, command := range []string{"iptables-nft-save", "iptables-legacy-save", "nft list ruleset"} {
		left := m.node.RunT(m.t, "sh", "-c", command)
		for _, name := range names {
			if strings.Contains(left, name) {
				m.t.Errorf("%s is left:\n%s", name, left)
			}
		}
	}
}

func (m *machine) await(what string, holds func() bool) {
	m.t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// connections are those to the Service, one after the other and such as last, from a
// pod, whose sockets mode ebpf sees, and from outside, of which it sees packets.
type connections struct {
	m     *machine
	from  map[string]*netns.NS
	lasts map[string]net.Conn
	stop  chan struct{}
	all   sync.WaitGroup

	mu     sync.Mutex // guards what follows
	asked  map[string]int
	failed []string
	waited []string // a second or more: a packet was lost
}

// patience is how long a connection may take: kernels retransmit.
const patience = 15 * time.Second

// startTraffic begins to ask until the test ends.
func (m *machine) startTraffic() *connections {
	m.t.Helper()
	tr := &connections{m: m, from: map[string]*netns.NS{"the pod": m.client, "outside": m.underlay},
		lasts: map[string]net.Conn{}, stop: make(chan struct{}), asked: map[string]int{}}
	m.underlay.RunT(m.t, "ip", "route", "add", webIPv4, "via", "192.168.244.11")
	m.accept(netip.MustParseAddrPort("10.244.1.3:8081"), func(conn net.Conn) {
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	})
	for name, ns := range tr.from {
		tr.all.Go(func() { tr.ask(name, ns) })
	}
	m.t.Cleanup(func() {
		tr.end()
		for _, conn := range tr.lasts {
			_ = conn.Close()
		}
	})
	return tr
}

func dial(ns *netns.NS, port string) (conn net.Conn, err error) {
	err = ns.Do(func() error {
		conn, err = net.DialTimeout("tcp", net.JoinHostPort(webIPv4, port), patience)
		return err
	})
	return conn, err
}

func (tr *connections) ask(name string, ns *netns.NS) {
	for {
		select {
		case <-tr.stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
		began := time.Now()
		conn, err := dial(ns, "80")
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, err = io.ReadAll(conn)
			_ = conn.Close()
		}
		if err != nil {
			tracked := tr.m.node.RunT(tr.m.t, "conntrack", "-L", "-p", "tcp", "--state", "SYN_SENT")
			err = fmt.Errorf("%w; connection tracking has\n%s", err, tracked)
		}
		tr.note(name, time.Since(began), err)
	}
}

func (tr *connections) note(name string, took time.Duration, err error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.asked[name]++
	if err != nil {
		tr.failed = append(tr.failed, fmt.Sprintf("from %s: %v", name, err))
	} else if took >= time.Second {
		tr.waited = append(tr.waited, fmt.Sprintf("from %s: %s", name, took))
	}
}

// open opens connections that last.
func (tr *connections) open(how string) {
	tr.m.t.Helper()
	for name, ns := range tr.from {
		conn, err := dial(ns, "81")
		tr.m.must(err)
		tr.lasts["from "+name+", "+how] = conn
	}
}

// check looks how the traffic went, and whether the open connections are.
func (tr *connections) check(when string) {
	t := tr.m.t
	t.Helper()
	before := tr.count()
	for name := range tr.from {
		tr.m.await("more traffic from "+name, func() bool { return tr.count()[name] > before[name]+10 })
	}
	for how, conn := range tr.lasts {
		if err := tell(conn); err != nil {
			t.Errorf("%s: the connection that was opened %s: %v", when, how, err)
			delete(tr.lasts, how)
		}
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if len(tr.failed) > 0 {
		t.Errorf("%s: of %v connections failed %d: %q", when, tr.asked, len(tr.failed), tr.failed)
	}
	if len(tr.waited) > 0 {
		t.Logf("%s: of %v connections waited: %q", when, tr.asked, tr.waited)
	}
	tr.failed, tr.waited = nil, nil
}

// tell has one byte come back.
func tell(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, err := io.WriteString(conn, "x")
	_, readErr := io.ReadFull(conn, make([]byte, 1))
	return errors.Join(err, readErr)
}

func (tr *connections) count() map[string]int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return maps.Clone(tr.asked)
}

// end stops asking.
func (tr *connections) end() {
	select {
	case <-tr.stop:
	default:
		close(tr.stop)
	}
	tr.all.Wait()
}
