package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/cni/node/install"
	"github.com/fairlead/fairlead/e2e/netns"
)

func TestNodeUsageErrors(t *testing.T) {
	dir := t.TempDir()
	tests := []struct{ args, want string }{
		{"node", `--kubeconfig or --manifests: missing: where the objects of the cluster come from (only in a pod of the cluster is that known)`},
		{"node extra", `argument "extra": 'fairlead node' takes none`},
		{"node --manifests /nonexistent", `--manifests: watch /nonexistent: no such file or directory`},
		{"node --manifests " + dir + " --routing bgp", `--routing "bgp": allowed are auto, direct and vxlan`},
		{"node --manifests " + dir + " --vxlan-vni 16777216", `--vxlan-vni 16777216: allowed are 1 to 16777215`},
		{"node --manifests " + dir + " --vxlan-port 0", `--vxlan-port 0: allowed are 1 to 65535`},
		{"node --manifests " + dir + " --masquerade pf", `--masquerade "pf": allowed are auto, nftables, iptables and none`},
		{"node --manifests " + dir + " --non-masquerade-cidrs 10.0.0.1", `--non-masquerade-cidrs "10.0.0.1": must be a range like 10.244.0.0/16 or fd00:10:244::/48`},
		{"node --manifests " + dir + " --conf-template /nonexistent", `--conf-template "/nonexistent": open /nonexistent: no such file or directory`},
		{"node --manifests " + dir + " --log-format xml", `--log-format "xml": allowed are text and json`},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := run(t.Context(), strings.Fields(tt.args), testEnv(&out, &errs))
			if want := "fairlead: " + tt.want + "\n"; code != exitUsage || errs.String() != want || out.Len() > 0 {
				t.Errorf("code %d, stdout %q, stderr:\n%swant:\n%s", code, &out, &errs, want)
			}
		})
	}
}

// running is 'fairlead node' at work in a namespace of its own.
type running struct {
	t    *testing.T
	ns   *netns.NS
	dir  string // has the manifests
	bin  string // --cni-bin-dir
	conf string // --cni-conf-dir
	log  *logged
	stop func() // and wait for the end, which must be an orderly one
}

const nodesYAML = `
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDRs: [10.244.1.0/24, "fd00:244:1::/64"]}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}, {type: InternalIP, address: "fd00::1"}]}
---
apiVersion: v1
kind: Node
metadata: {name: node-2}
spec: {podCIDRs: [10.244.2.0/24, "fd00:244:2::/64"]}
status: {addresses: [{type: InternalIP, address: 10.0.0.2}, {type: InternalIP, address: "fd00::2"}]}
`

// newNode makes a node's namespace and the manifests of a cluster of two.
func newNode(t *testing.T) *running {
	t.Helper()
	r := &running{t: t, ns: netns.NewT(t), dir: t.TempDir(), bin: t.TempDir(), conf: t.TempDir()}
	r.ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip link add eth0 type bridge
		ip addr add 10.0.0.1/24 dev eth0
		ip addr add fd00::1/64 dev eth0 nodad
		ip link set eth0 up`)
	r.write("nodes.yaml", nodesYAML)
	return r
}

func (r *running) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) start(args ...string) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	r.log = &logged{t: r.t, more: make(chan struct{}, 1)}
	ended := make(chan int, 1)
	plugin := filepath.Join(r.t.TempDir(), "plugin")
	if err := os.WriteFile(plugin, []byte("the plugin"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	args = append([]string{"node", "--manifests", r.dir, "--cni-bin-dir", r.bin, "--cni-conf-dir", r.conf, "--cni-binary", plugin}, args...)
	go func() {
		_ = r.ns.Do(func() error {
			e := testEnv(new(bytes.Buffer), new(bytes.Buffer))
			e.stderr = io.Writer(r.log)
			ended <- run(ctx, args, e)
			return nil
		})
	}()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if code := <-ended; code != exitOK {
			r.t.Errorf("code %d, log:\n%s", code, r.log.text())
		}
	})
	r.t.Cleanup(r.stop)
}

// logged collects what a command logs while it runs.
type logged struct {
	t    *testing.T
	mu   sync.Mutex // guards buf
	buf  bytes.Buffer
	more chan struct{}
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

func (l *logged) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// await waits until text was logged.
func (l *logged) await(text string) {
	l.t.Helper()
	end := time.After(20 * time.Second)
	for !strings.Contains(l.text(), text) {
		select {
		case <-l.more:
		case <-end:
			l.t.Fatalf("%q is not logged:\n%s", text, l.text())
		}
	}
}

// A problem is told when it begins and when it ends. What is programmed stays,
// and cleanup removes it.
func TestNodeAndCleanup(t *testing.T) {
	r := newNode(t)
	r.start()
	r.log.await("msg=connected")
	r.write("more.yaml", strings.NewReplacer("node-1", "node-3", "node-2", "node-4", "0.0.1}", "0.0.3}", "0.0.2}", "0.0.4}", "::1\"}", "::3\"}", "::2\"}", "::4\"}", "244.2.", "244.4.", "244:2:", "244:4:").Replace(nodesYAML))
	r.log.await("its pod CIDR 10.244.1.0/24 overlaps 10.244.1.0/24 of this node: it is not reached")
	if routes := r.ns.RunT(t, "ip", "route"); !strings.Contains(routes, "10.244.4.0/24 via 10.0.0.4 dev eth0 proto 250 src 10.0.0.1") {
		t.Errorf("the other new node is not reached:\n%s", routes)
	}
	if err := os.Remove(filepath.Join(r.dir, "more.yaml")); err != nil {
		t.Fatal(err)
	}
	r.log.await(`msg=mended problem="node node-3: its pod CIDR 10.244.1.0/24`)
	if n := strings.Count(r.log.text(), "its pod CIDR 10.244.1.0/24 overlaps"); n != 2 {
		t.Errorf("the problem is told %d times instead of twice, when it begins and when it ends:\n%s", n, r.log.text())
	}
	r.stop()
	if tables := r.ns.RunT(t, "nft", "list", "ruleset"); !strings.Contains(tables, "fairlead-node") {
		t.Errorf("nothing is masqueraded:\n%s", tables)
	}
	if config := r.read(filepath.Join(r.conf, install.Conflist)); !strings.Contains(config, `"mtu": 1500`) {
		t.Errorf("network configuration:\n%s", config)
	}
	if routes := r.ns.RunT(t, "ip", "-6", "route"); !strings.Contains(routes, "fd00:244:2::/64 via fd00::2 dev eth0 proto 250") {
		t.Errorf("the routes should stay:\n%s", routes)
	}
	for range 2 {
		in(t, r.ns, func() int {
			return run(t.Context(), []string{"cleanup", "--cni-conf-dir", r.conf}, testEnv(new(bytes.Buffer), new(bytes.Buffer)))
		})
	}
	if routes := r.ns.RunT(t, "sh", "-c", "ip route; ip -6 route"); strings.Contains(routes, "proto 250") {
		t.Errorf("cleanup left:\n%s", routes)
	}
	if tables := r.ns.RunT(t, "nft", "list", "ruleset"); strings.Contains(tables, "fairlead-node") {
		t.Errorf("cleanup left:\n%s", tables)
	}
	if _, err := os.Stat(filepath.Join(r.conf, install.Conflist)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("cleanup left the network configuration: %v", err)
	}
	r.read(filepath.Join(r.bin, install.IPAM)) // stays
}

func (r *running) read(path string) string {
	r.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

// The runtime may make pods, and probes say so, when pods can be connected and
// not before.
func TestNodeReady(t *testing.T) {
	r := newNode(t)
	r.ns.RunT(t, "ip", "addr", "del", "10.0.0.1/24", "dev", "eth0")
	r.start("--healthz-bind-address", "[fd00::1]:10257", "--non-masquerade-cidrs", "10.77.0.0/16")
	r.log.await("its IPv4 address 10.0.0.1 is on no interface that is up")
	if got := r.get("/healthz"); got != http.StatusOK {
		t.Errorf("/healthz: %d", got)
	}
	if got := r.get("/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz before the node is ready: %d", got)
	}
	if _, err := os.Stat(filepath.Join(r.conf, install.Conflist)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the network configuration is there too early: %v", err)
	}
	r.ns.RunT(t, "ip", "addr", "add", "10.0.0.1/24", "dev", "eth0")
	r.log.await(`msg=mended problem="node node-1: its IPv4 address`)
	r.stop()
	if config := r.read(filepath.Join(r.conf, install.Conflist)); !strings.Contains(config, "10.244.1.0/24") {
		t.Errorf("network configuration:\n%s", config)
	}
	if set := r.ns.RunT(t, "nft", "list", "set", "ip", "fairlead-node", "cluster"); !strings.Contains(set, "10.77.0.0/16") {
		t.Errorf("ranges that are not masqueraded:\n%s", set)
	}
}

// get asks the node's health and returns the status.
func (r *running) get(path string) int {
	r.t.Helper()
	status := 0
	err := r.ns.Do(func() error {
		conn, err := net.Dial("tcp", "[fd00::1]:10257")
		if err != nil {
			return err
		}
		client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
		defer client.CloseIdleConnections()
		answer, err := client.Get("http://node" + path)
		if err != nil {
			return err
		}
		status = answer.StatusCode
		return answer.Body.Close()
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return status
}

// A configuration that somebody removed comes back.
func TestConfigComesBack(t *testing.T) {
	conf := t.TempDir()
	i, err := installFlags{confDir: conf}.newInstaller()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(conf, install.Conflist)
	for range 2 {
		if err := i.config(install.Values{NodeName: "n1", MTU: 1500}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// A node that the cluster does not know changes nothing.
func TestNodeUnknown(t *testing.T) {
	r := newNode(t)
	r.start("--node-name", "node-9")
	r.log.await("node node-9: the cluster has no node of this name, nothing is changed: see --node-name")
	if routes := r.ns.RunT(t, "ip", "route"); strings.Contains(routes, "proto 250") {
		t.Errorf("routes:\n%s", routes)
	}
}
