package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/e2e/netns"
)

// Every metric that deploy/monitoring asks for is one that a running proxy or node
// tells.
func TestMonitoring(t *testing.T) {
	told := metricsTold(t)
	queries := append(ruleQueries(t), dashboardQueries(t)...)
	if len(queries) < 20 {
		t.Fatalf("there are %d queries only", len(queries))
	}
	for _, q := range queries {
		for _, name := range metricName.FindAllString(q, -1) {
			if name == "process_resident_memory_bytes" || told[name] || told[strings.TrimSuffix(name, "_bucket")] {
				continue
			}
			t.Errorf("no process tells %s, which is asked for by\n%s", name, q)
		}
	}
}

var metricName = regexp.MustCompile(`\b(fairlead|kubeproxy|process|go)_[a-z_]+`)

func ruleQueries(t *testing.T) (queries []string) {
	t.Helper()
	text, err := os.ReadFile("../deploy/monitoring/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Groups []struct {
			Rules []struct{ Alert, Expr string }
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			queries = append(queries, r.Expr)
		}
	}
	return queries
}

func dashboardQueries(t *testing.T) (queries []string) {
	t.Helper()
	text, err := os.ReadFile("../deploy/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			queries = append(queries, target.Expr)
		}
	}
	return queries
}

const monitored = `
{apiVersion: v1, kind: Node, metadata: {name: node-1}, spec: {podCIDRs: [10.244.1.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-2}, spec: {podCIDRs: [10.244.2.0/24]}, status: {addresses: [{type: InternalIP, address: 192.0.2.2}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-3}, spec: {podCIDRs: [10.244.2.0/25]}, status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: default
  labels: {kubernetes.io/service-name: web}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: %q}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.2]}]
`

// metricsTold has the name of each metric that a proxy and a node tell, one of them
// after somebody changed what is its.
func metricsTold(t *testing.T) map[string]bool {
	t.Helper()
	dir, ns := t.TempDir(), netns.NewT(t)
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(fmt.Sprintf(monitored, time.Now().Add(time.Hour).Format(time.RFC3339))), 0o600); err != nil {
		t.Fatal(err)
	}
	ns.RunT(t, "sh", "-ec", `
		ip link set lo up
		ip link add eth0 type veth peer eth1
		ip addr add 192.0.2.1/24 dev eth0
		ip link set eth0 up
		ip link set eth1 up`)
	source := []string{"--manifests", dir, "--node-name", "node-1"}
	run := func(args ...string) {
		cmd := exec.Command(filepath.Join(programs.Dir(t), "fairlead"), append(args, source...)...)
		var log strings.Builder
		cmd.Stderr = &log
		if err := ns.Do(cmd.Start); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_, _ = cmd.Process.Kill(), cmd.Wait()
			if t.Failed() {
				t.Logf("%s printed:\n%s", args[0], &log)
			}
		})
	}
	conf := t.TempDir()
	run("proxy", "--mode", "iptables", "--inspect-socket", "", "--bpf-root", filepath.Join(conf, "bpf"), "--metrics-bind-address", "127.0.0.1:10249")
	ipam := fmt.Sprintf(`"mode": "bridge", "bridge": "fl0", "ipam": {"type": "fairlead-ipam", "dataDir": %q, "subnet": "10.244.1.0/24"}}`, filepath.Join(conf, "ipam"))
	template := filepath.Join(conf, "template")
	if err := os.WriteFile(template, []byte(`{"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "fairlead-cni", `+ipam+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	addPod(t, ns, `{"cniVersion": "1.1.0", "name": "pods", "type": "fairlead-cni", `+ipam)
	run("node", "--inspect-socket", "", "--cni-bin-dir", "", "--cni-conf-dir", conf, "--conf-template", template, "--ipam-data-dir", filepath.Join(conf, "ipam"), "--metrics-bind-address", "127.0.0.1:10247")
	told := map[string]bool{}
	scrape(t, ns, "127.0.0.1:10249", told, "kubeproxy_network_programming_duration_seconds")
	scrape(t, ns, "127.0.0.1:10247", told, "fairlead_node_problems")
	scrape(t, ns, "127.0.0.1:10247", told, "fairlead_node_addresses")
	ns.RunT(t, "ip", "route", "flush", "proto", "250")
	scrape(t, ns, "127.0.0.1:10247", told, "fairlead_node_repairs_total")
	return told
}

// addPod has the plugin connect a pod.
func addPod(t *testing.T, ns *netns.NS, config string) {
	t.Helper()
	plugin := exec.Command(filepath.Join(programs.Dir(t), "fairlead-cni"))
	plugin.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=web", "CNI_NETNS=" + netns.NewT(t).Path(), "CNI_IFNAME=eth0", "CNI_PATH=/", "PATH=" + os.Getenv("PATH")}
	plugin.Stdin = strings.NewReader(config)
	if err := ns.Do(func() error {
		out, err := plugin.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// scrape reads the metrics told at an address until one of them is there.
func scrape(t *testing.T, ns *netns.NS, addr string, told map[string]bool, last string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !told[last]; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not tell %s; it tells %v", addr, last, told)
		}
		var conn net.Conn
		if err := ns.Do(func() (err error) {
			conn, err = net.DialTimeout("tcp", addr, time.Second)
			return err
		}); err != nil {
			continue // it is just starting
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprint(conn, "GET /metrics HTTP/1.0\r\n\r\n")
		text, _ := io.ReadAll(conn)
		_ = conn.Close()
		for line := range strings.Lines(string(text)) {
			if name, ok := strings.CutPrefix(line, "# TYPE "); ok {
				told[strings.Fields(name)[0]] = true
			}
		}
	}
}
