package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
)

func TestNodeUsageErrors(t *testing.T) {
	dir := t.TempDir()
	tests := []struct{ args, want string }{
		{"node", `--manifests: missing: the directory with the objects of the cluster`},
		{"node extra", `argument "extra": 'fairlead node' takes none`},
		{"node --manifests /nonexistent", `--manifests: watch /nonexistent: no such file or directory`},
		{"node --manifests " + dir + " --routing bgp", `--routing "bgp": allowed are auto, direct and vxlan`},
		{"node --manifests " + dir + " --vxlan-vni 16777216", `--vxlan-vni 16777216: allowed are 1 to 16777215`},
		{"node --manifests " + dir + " --vxlan-port 0", `--vxlan-port 0: allowed are 1 to 65535`},
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
	dir  string
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
	r := &running{t: t, ns: netns.NewT(t), dir: t.TempDir()}
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
	go func() {
		_ = r.ns.Do(func() error {
			e := testEnv(new(bytes.Buffer), new(bytes.Buffer))
			e.stderr = io.Writer(r.log)
			ended <- run(ctx, append([]string{"node", "--manifests", r.dir}, args...), e)
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
	r.log.await("msg=mended")
	if n := strings.Count(r.log.text(), "its pod CIDR 10.244.1.0/24 overlaps"); n != 2 {
		t.Errorf("the problem is told %d times instead of twice, when it begins and when it ends:\n%s", n, r.log.text())
	}
	r.stop()
	if routes := r.ns.RunT(t, "ip", "-6", "route"); !strings.Contains(routes, "fd00:244:2::/64 via fd00::2 dev eth0 proto 250") {
		t.Errorf("the routes should stay:\n%s", routes)
	}
	for range 2 {
		in(t, r.ns, func() int {
			return run(t.Context(), []string{"cleanup"}, testEnv(new(bytes.Buffer), new(bytes.Buffer)))
		})
	}
	if routes := r.ns.RunT(t, "sh", "-c", "ip route; ip -6 route"); strings.Contains(routes, "proto 250") {
		t.Errorf("cleanup left:\n%s", routes)
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
