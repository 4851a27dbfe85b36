package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/cni"
	"github.com/fairlead/fairlead/cni/hostlocal"
	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/cni/node/install"
	"github.com/fairlead/fairlead/cni/node/metrics"
	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

func TestNodeUsageErrors(t *testing.T) {
	dir := t.TempDir()
	tests := []struct{ args, want string }{
		{"node", `--kubeconfig or --manifests: missing: where the objects of the cluster come from (only in a pod of the cluster is that known)`},
		{"node extra", `argument "extra": 'fairlead node' takes none`},
		{"node --manifests /nonexistent", `--manifests: watch /nonexistent: no such file or directory`},
		{"node --manifests " + dir + " --routing bgp", `--routing "bgp": allowed are auto, direct and vxlan`},
		{"node --manifests " + dir + " --vxlan-vni 16777216", `--vxlan-vni 16777216: allowed are 1 to 16777215`},
		{"node --manifests " + dir + " --mtu 1279", `--mtu 1279: allowed are 0 and 1280 to 65535`},
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
	data string // has the stores of addresses
	sock string // --inspect-socket
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
	r := &running{t: t, ns: netns.NewT(t), dir: t.TempDir(), bin: t.TempDir(), conf: t.TempDir(), data: t.TempDir()}
	r.sock = filepath.Join(t.TempDir(), "node.sock")
	r.ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip link add eth0 type bridge
		ip addr add 10.0.0.1/24 dev eth0
		ip addr add fd00::1/64 dev eth0 nodad
		ip link set eth0 up`)
	r.write("nodes.yaml", nodesYAML)
	r.write("template", fmt.Sprintf(nodeTemplate, r.data))
	return r
}

// nodeTemplate is for a network whose store is not the machine's.
const nodeTemplate = `{"cniVersion": "1.1.0", "name": "pods", "plugins": [{
	"type": "fairlead-cni", "mtu": {{.MTU}}, "ipam": {"type": "fairlead-ipam", "dataDir": %q, "subnet": {{json (index .PodCIDRs 0)}}}}]}`

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
	args = append([]string{"node", "--manifests", r.dir, "--cni-bin-dir", r.bin, "--cni-conf-dir", r.conf, "--cni-binary", plugin,
		"--conf-template", filepath.Join(r.dir, "template"), "--ipam-data-dir", r.data, "--inspect-socket", r.sock, "--host-local-dir", ""}, args...)
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

// On a node with pods of the reference plugins no others are made until Fairlead knows of
// their addresses.
func TestNodeAfterHostLocal(t *testing.T) {
	r := newNode(t)
	theirs := hostLocalDir(t, map[string]string{"10.244.1.5": "old\r\neth0"})
	if err := os.Chtimes(filepath.Join(theirs, "pods", "10.244.1.5"), time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	r.start("--host-local-dir", theirs)
	r.log.await("msg=problem kind=NotInstalled problem=\"node node-1: no pods are made here: host-local has addresses")
	if _, err := os.Stat(filepath.Join(r.conf, install.Conflist)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the network configuration is there too early: %v", err)
	}
	args := []string{"ipam", "import-host-local", "--network", "pods", "--from", theirs, "--data-dir", r.data}
	if code := run(t.Context(), args, testEnv(new(bytes.Buffer), new(bytes.Buffer))); code != exitOK {
		t.Fatalf("import: code %d", code)
	}
	r.log.await("msg=mended kind=NotInstalled")
	r.read(filepath.Join(r.conf, install.Conflist))
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
	r.log.await(`msg=mended kind=PodCIDROverlapsNode problem="node node-3: its pod CIDR 10.244.1.0/24`)
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
			return run(t.Context(), []string{"cleanup", "--cni-conf-dir", r.conf, "--bpf-root", t.TempDir()}, testEnv(new(bytes.Buffer), new(bytes.Buffer)))
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

// What another --masquerade has written goes when this one's is there.
func TestNodeMasquerade(t *testing.T) {
	r := newNode(t)
	const nft, ipt = "fairlead-node", "FLNODE-MASQ"
	for _, tt := range []struct {
		how  string
		want []string
	}{
		{"nftables", []string{nft}},
		{"none", nil},
		{"iptables", []string{ipt}},
		{"auto", []string{nft}},
		{"iptables", []string{ipt}},
		{"none", nil},
	} {
		r.start("--masquerade", tt.how)
		r.log.await("msg=connected")
		r.stop()
		var got []string
		tables := r.ns.RunT(t, "sh", "-ec", "nft list ruleset; iptables-save; ip6tables-save")
		for _, name := range []string{nft, ipt} {
			if strings.Contains(tables, name) {
				got = append(got, name)
			}
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("--masquerade %s: (-want +got)\n%s", tt.how, diff)
		}
	}
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
	r.start("--healthz-bind-address", "[fd00::1]:10257", "--metrics-bind-address", "[fd00::1]:10258", "--non-masquerade-cidrs", "10.77.0.0/16")
	r.log.await("its IPv4 address 10.0.0.1 is on no interface that is up")
	if got, _ := r.get("10257/healthz"); got != http.StatusOK {
		t.Errorf("/healthz: %d", got)
	}
	if got, _ := r.get("10257/readyz"); got != http.StatusServiceUnavailable {
		t.Errorf("/readyz before the node is ready: %d", got)
	}
	r.wantMetrics(`fairlead_node_problems{kind="NodeAddressMissing"} 1`, "fairlead_node_nodes 2", "fairlead_node_routes_programmed 1")
	if _, err := os.Stat(filepath.Join(r.conf, install.Conflist)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the network configuration is there too early: %v", err)
	}
	r.ns.RunT(t, "ip", "addr", "add", "10.0.0.1/24", "dev", "eth0")
	r.log.await(`msg=mended kind=NodeAddressMissing problem="node node-1: its IPv4 address`)
	r.ns.RunT(t, "ip", "route", "del", "10.244.2.0/24")
	r.awaitMetric(`fairlead_node_repairs_total{what="routes"}`)
	r.wantMetrics("fairlead_node_routes_wanted 2", "fairlead_node_routes_programmed 2", "fairlead_node_change_duration_seconds_count",
		`fairlead_build_info{mode="node",version="unknown"} 1`)
	if _, text := r.get("10258/metrics"); strings.Contains(text, "fairlead_node_problems{") {
		t.Errorf("problems that are mended:\n%s", text)
	}
	if got, _ := r.get("10257/readyz"); got != http.StatusOK {
		t.Errorf("/readyz: %d", got)
	}
	r.stop()
	if config := r.read(filepath.Join(r.conf, install.Conflist)); !strings.Contains(config, "10.244.1.0/24") {
		t.Errorf("network configuration:\n%s", config)
	}
	if set := r.ns.RunT(t, "nft", "list", "set", "ip", "fairlead-node", "cluster16"); !strings.Contains(set, "10.77.0.0") {
		t.Errorf("ranges that are not masqueraded:\n%s", set)
	}
}

// get asks the node, PORT/PATH, and returns status and text.
func (r *running) get(what string) (status int, text string) {
	r.t.Helper()
	port, path, _ := strings.Cut(what, "/")
	err := r.ns.Do(func() error {
		conn, err := net.Dial("tcp", "[fd00::1]:"+port)
		if err != nil {
			return err
		}
		client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
		defer client.CloseIdleConnections()
		answer, err := client.Get("http://node/" + path)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(answer.Body)
		status, text = answer.StatusCode, string(body)
		return errors.Join(err, answer.Body.Close())
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return status, text
}

// wantMetrics looks for beginnings of lines.
func (r *running) wantMetrics(lines ...string) {
	r.t.Helper()
	_, text := r.get("10258/metrics")
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line) {
			r.t.Errorf("no %s in:\n%s", line, text)
		}
	}
}

// awaitMetric waits until there is a line that begins so.
func (r *running) awaitMetric(line string) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		_, text := r.get("10258/metrics")
		if strings.Contains(text, "\n"+line) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("no %s in:\n%s", line, text)
		}
	}
}

// What a pod held that ended without a word is free again when the node's process
// starts.
func TestNodeSweeps(t *testing.T) {
	r := newNode(t)
	conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "pods", "ipam": {"type": "fairlead-ipam", "dataDir": %q, "subnet": "10.244.1.0/24"}}`, r.data)
	for _, id := range []string{"ended", "lives"} {
		path := filepath.Join(r.data, id)
		if id == "lives" {
			path = r.ns.Path()
		}
		_, err := hostlocal.New().Add(t.Context(), &skel.CmdArgs{ContainerID: id, IfName: "eth0", Netns: path, StdinData: []byte(conf)})
		if err != nil {
			t.Fatal(err)
		}
	}
	r.start("--metrics-bind-address", "[fd00::1]:10258")
	r.log.await("swept a pod that ended without a word")
	r.awaitMetric("fairlead_node_swept_total 1")
	r.wantMetrics(`fairlead_node_addresses{network="pods",range="10.244.1.1-10.244.1.254",state="held"} 1`)
	if text := r.log.text(); strings.Contains(text, "lives") {
		t.Errorf("log:\n%s", text)
	}
}

// What pods have in the packet filter comes back when a firewall is loaded anew, as
// the node's own does.
func TestNodeRepairsFilter(t *testing.T) {
	r, pod := newNode(t), netns.NewT(t)
	r.start("--metrics-bind-address", "[fd00::1]:10258")
	r.log.await("msg=connected")
	conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "pods", "type": "fairlead-cni", "ipMasq": true, "macspoofchk": true,
		"ipam": {"type": "fairlead-ipam", "dataDir": %q, "subnet": "10.244.1.0/24"}}`, r.data)
	err := r.ns.Do(func() error {
		return (&cni.Plugin{Stdout: io.Discard}).Add(t.Context(), &skel.CmdArgs{ContainerID: "pod", Netns: pod.Path(), IfName: "eth0", StdinData: []byte(conf)})
	})
	if err != nil {
		t.Fatal(err)
	}
	want := r.tables()
	if !strings.Contains(want, "pods/pod/eth0") || !strings.Contains(want, "fairlead-node") {
		t.Fatalf("tables:\n%s", want)
	}
	for range 3 {
		r.ns.RunT(t, "nft", "flush", "ruleset")
		for end := time.Now().Add(time.Minute); r.tables() != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("not repaired (-want +got):\n%s\nlog:\n%s", cmp.Diff(want, r.tables()), r.log.text())
			}
		}
	}
	r.awaitMetric(`fairlead_node_repairs_total{what="filter"}`)
	r.awaitMetric(`fairlead_node_repairs_total{what="masquerade"}`)
}

// tables are all lines of nftables, in an order that does not depend on who was first.
func (r *running) tables() string {
	r.t.Helper()
	lines := strings.Split(r.ns.RunT(r.t, "nft", "list", "ruleset"), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// told is an Event.
type told struct {
	object watch.Object
	reason string
}

// toldEvents implements events.
type toldEvents struct{ all []told }

func (e *toldEvents) Warn(o watch.Object, reason, _ string) { e.all = append(e.all, told{o, reason}) }

// Where Services are no pods can be. It is said by flags or by ServiceCIDR objects,
// which may come and go.
func TestNodeServiceCIDRs(t *testing.T) {
	r := newNode(t)
	r.start("--metrics-bind-address", "[fd00::1]:10258")
	r.log.await("msg=connected")
	const object = `apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.244.0.0/22, "fd00:96::/112"]}
`
	r.write("services.yaml", object)
	r.log.await("node node-2: its pod CIDR 10.244.2.0/24 overlaps 10.244.0.0/22, in which Services are: it is not reached")
	r.log.await("node node-1: its pod CIDR 10.244.1.0/24 overlaps 10.244.0.0/22, in which Services are: no pods can run on it")
	r.awaitMetric(`fairlead_node_problems{kind="PodCIDROverlapsServices"} 2`)
	routes := r.ns.RunT(t, "sh", "-c", "ip route; ip -6 route")
	if strings.Contains(routes, "10.244.2.0/24") || !strings.Contains(routes, "fd00:244:2::/64 via fd00::2") {
		t.Errorf("routes:\n%s", routes)
	}
	r.write("services.yaml", strings.Replace(object, "10.244.0.0/22", "10.96.0.0/16", 1))
	r.log.await(`msg=mended kind=PodCIDROverlapsServices problem="node node-2`)
	if routes := r.ns.RunT(t, "ip", "route"); !strings.Contains(routes, "10.244.2.0/24") {
		t.Errorf("routes:\n%s", routes)
	}
}

// WarnUID implements events.
func (e *toldEvents) WarnUID(o watch.Object, _, reason, message string) { e.Warn(o, reason, message) }

// Each node tells of itself, and each thing once while it lasts.
func TestNodeEvents(t *testing.T) {
	heard := &toldEvents{}
	l := &nodeLoop{name: "node-1", events: heard, metrics: metrics.New("test"), log: slog.New(slog.DiscardHandler)}
	own := cninode.Problem{Kind: cninode.OverlapsNode, Member: "node-1", Text: "its pod CIDR"}
	l.problems = []cninode.Problem{own, {Kind: cninode.NoPodCIDR, Member: "node-2", Text: "it has no pod CIDR"}}
	l.report()
	l.report()
	l.problems = nil
	l.report()
	l.problems = []cninode.Problem{own}
	l.report()
	event := told{watch.Object{Kind: "Node", Name: service.Name{Name: "node-1"}}, "PodCIDROverlapsNode"}
	if diff := cmp.Diff([]told{event, event}, heard.all, cmp.AllowUnexported(told{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// The watch may be interrupted for a while, not for long.
func TestNodeHealthStale(t *testing.T) {
	now := time.Now()
	last := now.Add(-time.Second)
	h := nodeHealth{stale: func(time.Time) error { return &watch.StaleError{Kind: "Node", Last: last} }}
	if err := h.trouble(now); err != nil {
		t.Error(err)
	}
	last = now.Add(-2 * unhealthyAfter)
	if err := h.trouble(now); err == nil || !strings.Contains(err.Error(), "watch Node objects") {
		t.Errorf("error %v", err)
	}
	h.stale = func(time.Time) error { return nil }
	if err := h.trouble(now); err != nil {
		t.Error(err)
	}
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
		if err := i.config(install.Values{NodeName: "n1", MTU: 1500}, func([]byte) error { return nil }); err != nil {
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
