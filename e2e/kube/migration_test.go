package kube_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/proxy/service"
)

// The steps of docs/migration.md, from the real kube-proxy to Fairlead and back: no
// new connection fails, one that is open stays, and at each end nothing is left of
// the other.
func TestMigration(t *testing.T) {
	for _, mode := range []string{"iptables", "ebpf"} {
		t.Run(mode, func(t *testing.T) { migrate(t, mode) })
	}
}

func migrate(t *testing.T, mode string) {
	m := newMachine(t)
	m.populate()
	kubeconfig := m.kubeProxyKubeconfig()
	config := kube.KubeProxyConfig(service.Config{NodeName: "node-1"}, kubeconfig)
	kubeProxy := func() *kube.Process {
		p, err := kube.StartKubeProxy(t.Context(), m.node, config, "nft", t.TempDir())
		m.must(err)
		return p
	}
	old := kubeProxy()
	m.awaitAnswer()
	traffic := m.startTraffic()

	m.must(old.Stop())
	bpf := filepath.Join(t.TempDir(), "bpf")
	flags := []string{"--bpf-root", bpf, "--cgroup-root", m.cgroup.Path, "--iptables-variant", "nft"}
	fairlead := filepath.Join(programs.Dir(t), "fairlead")
	dir := t.TempDir()
	log := filepath.Join(dir, "fairlead.log")
	proxy, err := kube.StartProcess(m.node, log, exec.Command(fairlead, append([]string{"proxy", "--kubeconfig", kubeconfig,
		"--node-name", "node-1", "--mode", mode, "--inspect-socket", filepath.Join(dir, "proxy.sock")}, flags...)...))
	m.must(err)
	t.Cleanup(func() { _ = m.node.Do(exec.Command(fairlead, append([]string{"cleanup", "--cni-conf-dir", dir}, flags...)...).Run) })
	t.Cleanup(func() { _ = proxy.Stop() })
	m.awaitLog(log, "msg=synced")
	said := m.node.RunT(t, fairlead, "cleanup", "--kube-proxy", "--yes")
	if !strings.Contains(said, "chains in iptables-nft") {
		t.Errorf("cleanup --kube-proxy says %q", said)
	}
	if left := m.node.RunT(t, "iptables-nft-save"); strings.Contains(left, "KUBE-SVC") || strings.Contains(left, "KUBE-SERVICES") {
		t.Errorf("left of kube-proxy:\n%s", left)
	}
	traffic.check("from kube-proxy to Fairlead")

	m.must(proxy.Stop())
	back := kubeProxy()
	t.Cleanup(func() { _ = back.Stop() })
	m.awaitRules("KUBE-SVC-")
	m.node.RunT(t, fairlead, append([]string{"cleanup", "--cni-conf-dir", dir}, flags...)...)
	if left := m.node.RunT(t, "iptables-nft-save"); strings.Contains(left, "FAIRLEAD") {
		t.Errorf("left of Fairlead:\n%s", left)
	}
	traffic.check("from Fairlead to kube-proxy")
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

func (m *machine) awaitLog(file, text string) {
	m.t.Helper()
	m.await("the log says "+text, func() bool {
		out, err := exec.Command("grep", "-c", text, file).Output()
		return err == nil && strings.TrimSpace(string(out)) != "0"
	})
}

func (m *machine) awaitRules(text string) {
	m.t.Helper()
	m.await("rules with "+text, func() bool { return strings.Contains(m.node.RunT(m.t, "iptables-nft-save", "-t", "nat"), text) })
}

func (m *machine) await(what string, holds func() bool) {
	m.t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// traffic is connections to the Service: one after the other, and one that is open
// all the time.
type traffic struct {
	m    *machine
	open net.Conn

	mu     sync.Mutex // guards what follows
	asked  int
	failed []error
}

// startTraffic begins to ask until the test ends.
func (m *machine) startTraffic() *traffic {
	m.t.Helper()
	tr := &traffic{m: m}
	m.echo(netip.MustParseAddrPort("10.244.1.3:8081"))
	m.must(m.client.Do(func() (err error) {
		tr.open, err = net.DialTimeout("tcp", webIPv4+":81", 10*time.Second)
		return err
	}))
	stop, ended := make(chan struct{}), make(chan struct{})
	m.t.Cleanup(func() {
		close(stop)
		<-ended
		_ = tr.open.Close()
	})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
			_, err := m.ask()
			tr.mu.Lock()
			tr.asked++
			if err != nil {
				tr.failed = append(tr.failed, err)
			}
			tr.mu.Unlock()
		}
	}()
	return tr
}

// check looks how the traffic went, and whether the open connection is.
func (tr *traffic) check(when string) {
	t := tr.m.t
	t.Helper()
	before := tr.count()
	tr.m.await("more traffic", func() bool { return tr.count() > before+10 })
	tr.mu.Lock()
	asked, failed := tr.asked, tr.failed
	tr.mu.Unlock()
	if len(failed) > 0 {
		t.Errorf("%s: %d of %d connections failed, the first: %v", when, len(failed), asked, failed[0])
	}
	_ = tr.open.SetDeadline(time.Now().Add(10 * time.Second))
	_, err := io.WriteString(tr.open, "x")
	got := make([]byte, 1)
	_, readErr := io.ReadFull(tr.open, got)
	if err = errors.Join(err, readErr); err != nil {
		t.Errorf("%s: the open connection: %v", when, err)
	}
}

func (tr *traffic) count() int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.asked
}

// echo sends back what is sent to it in the pod web.
func (m *machine) echo(at netip.AddrPort) {
	m.t.Helper()
	m.accept(at, func(conn net.Conn) {
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	})
}
