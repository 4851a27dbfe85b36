package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/ipam/disk"
	"github.com/fairlead/fairlead/proxy/watch"
)

// A wrong command line is answered by one sentence that names what is wrong and
// what is allowed, and by exit code 2.
func TestUsageErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		args string
		want string
	}{
		{"bogus", `unknown command "bogus": see 'fairlead --help'`},
		{"proxy --bogus", `unknown flag: --bogus: see 'fairlead proxy --help'`},
		{"proxy extra", `argument "extra": 'fairlead proxy' takes none`},
		{"proxy", `--kubeconfig or --manifests: missing: where the objects of the cluster come from (only in a pod of the cluster is that known)`},
		{"proxy --kubeconfig x --manifests " + dir, `--kubeconfig and --manifests: only one of them can be where the objects come from`},
		{"proxy --kubeconfig /nonexistent", `--kubeconfig /nonexistent: no such file or directory`},
		{"proxy --kubeconfig " + file, `--kubeconfig ` + file + `: it names no API server`},
		{"proxy --kubeconfig testdata/no-such-context", `--kubeconfig testdata/no-such-context: current-context "there": there is no such context`},
		{"proxy --kubeconfig testdata/no-such-ca", `--kubeconfig testdata/no-such-ca: unable to read certificate-authority /nonexistent for here due to open /nonexistent: no such file or directory`},
		{"proxy --kubeconfig testdata/no-yaml", `--kubeconfig testdata/no-yaml: yaml: line 2: did not find expected node content`},
		{"proxy --manifests /nonexistent", `--manifests: watch /nonexistent: no such file or directory`},
		{"proxy --manifests " + file, `--manifests: watch ` + file + `: not a directory`},
		{"proxy --manifests " + dir + " --mode ipvs", `--mode "ipvs": allowed are iptables, ebpf and auto`},
		{"proxy --manifests " + dir + " --iptables-variant x", `--iptables-variant "x": allowed are legacy, nft and auto`},
		{"proxy --manifests " + dir + " --bpf-root /sys/fs/bpf/a.b", `--bpf-root "/sys/fs/bpf/a.b": a bpf file system allows no dot in the name of a folder`},
		{"proxy --manifests " + dir + " --iptables-masquerade-bit 32", `--iptables-masquerade-bit "32": must be 0 to 31`},
		{"proxy --manifests " + dir + " --cluster-cidr 10.244.0.1/16", `--cluster-cidr "10.244.0.1/16": must be a range like 10.244.0.0/16 or fd00:10:244::/48`},
		{"proxy --manifests " + dir + " --nodeport-addresses all,some,10.0.0.0/8", `--nodeport-addresses "some": must be a range like 10.244.0.0/16 or fd00:10:244::/48, or primary, localhost or all`},
		{"proxy --manifests " + dir + " --log-format xml", `--log-format "xml": allowed are text and json`},
		{"proxy --manifests " + dir + " --healthz-bind-address x", `--healthz-bind-address "x": must be an address and a port, like 0.0.0.0:10256 or [::]:10256`},
		{"proxy --manifests " + dir + " --detect-local-mode X", `--detect-local-mode "X": must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix`},
		{"proxy --manifests " + dir + " --detect-local-mode BridgeInterface", `--pod-bridge-interface "": must be 1 to 15 characters of an interface's name, without spaces, / and +`},
		{"proxy --manifests " + dir + " --conntrack-min -1", `--conntrack-min "-1": must be 0 or more`},
		{"proxy --manifests " + dir + " --proxy-mode userspace", `--proxy-mode "userspace": must be iptables, ipvs or nftables (or nothing)`},
		{"proxy --manifests " + dir + " --ipvs-sync-period x", `invalid argument "x" for "--ipvs-sync-period" flag: time: invalid duration "x": see 'fairlead proxy --help'`},
		{"ipam bogus", `unknown command "bogus": see 'fairlead ipam --help'`},
		{"trace --from x --to 10.96.0.10:53/udp", `--from "x": must be an address like 10.244.1.5 or fd00::5`},
		{"trace --from 10.244.1.5 --to 10.96.0.10/udp", `--to "10.96.0.10/udp": must be an address, a port and a protocol like 10.96.0.10:53/udp or [fd00::1]:80/tcp, or an address alone`},
		{"trace --from 10.244.1.5 --to 10.96.0.10:0", `--to "10.96.0.10:0": must be an address, a port and a protocol like 10.96.0.10:53/udp or [fd00::1]:80/tcp, or an address alone`},
		{"trace --from 10.244.1.5 --to 10.96.0.10:53/icmp", `--to "10.96.0.10:53/icmp": protocol "icmp": allowed are [tcp udp sctp]`},
		{"trace --from fd00::5 --to fd00::3:80", `--to "fd00::3:80": an address, or one with a port? Write [fd00::3:80] or [fd00::3]:80`},
		{"trace --from fd00::5 --to fd00::3:80/udp", `--to "fd00::3:80/udp": an address, or one with a port? Write [fd00::3:80] or [fd00::3]:80`},
		{"trace --live --to fd00::3:80", `--to "fd00::3:80": an address, or one with a port? Write [fd00::3:80] or [fd00::3]:80`},
		{"trace --from fd00::5 --to fd00:1:2:3:4:5:6:7:80", `--to "fd00:1:2:3:4:5:6:7:80": must be an address, a port and a protocol like 10.96.0.10:53/udp or [fd00::1]:80/tcp, or an address alone`},
		{"trace --from 10.244.1.5 --to [fd00::1]:53", `--from 10.244.1.5 --to [fd00::1]:53: one is IPv4, the other IPv6`},
		{"services -n b a/c", `--namespace b: a/c is in another one`},
		{"services a/b/c", `service "a/b/c": must be a name, or a namespace and a name like kube-system/kube-dns`},
		{"services /c", `service "/c": must be a name, or a namespace and a name like kube-system/kube-dns`},
		{"completion tcsh", `unknown command "tcsh": see 'fairlead completion --help'`},
		{"services a b", `argument "b": 'fairlead services' takes one Service`},
		{"services -o xml", `--output "xml": allowed are table, wide, json, yaml`},
		{"doctor -o xml", `--output "xml": allowed are table, json, yaml`},
		{"status -o xml", `--output "xml": allowed are table, wide, json, yaml`},
		{"cleanup --mode ipvs", `--mode "ipvs": allowed are iptables, ebpf and auto`},
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

func testEnv(out, errs *bytes.Buffer) env {
	return env{stdout: out, stderr: errs, hostname: func() (string, error) { return "Node-1", nil }, now: time.Now, bootID: disk.BootID}
}

// The proxy serves what is in the directory until it is told to end; the rules
// stay, and cleanup removes them.
func TestProxyAndCleanup(t *testing.T) {
	ns, dir := netns.NewT(t), t.TempDir()
	const manifest = `
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10]
  ports: [{port: 80}]
`
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	var out, errs bytes.Buffer
	log := &until{w: &errs, text: "msg=synced", then: stop}
	in(t, ns, func() int {
		e := testEnv(&out, &errs)
		e.stderr = log
		return run(ctx, []string{"proxy", "--mode", "iptables", "--manifests", dir, "--inspect-socket", "", "--bpf-root", dir}, e)
	})
	if !strings.Contains(errs.String(), "node=node-1") || !log.seen {
		t.Errorf("log:\n%s", &errs)
	}
	if rules := ns.RunT(t, "iptables-save"); !strings.Contains(rules, `"default/web"`) {
		t.Errorf("the rules should stay:\n%s", rules)
	}
	in(t, ns, func() int { return run(t.Context(), []string{"cleanup", "--bpf-root", dir}, testEnv(&out, &errs)) })
	if rules := ns.RunT(t, "iptables-save"); strings.Contains(rules, "FAIRLEAD") {
		t.Errorf("cleanup left:\n%s", rules)
	}
}

// in runs a command line, which must succeed, inside a namespace.
func in(t *testing.T, ns *netns.NS, command func() int) {
	t.Helper()
	code := -1
	err := ns.Do(func() error {
		code = command()
		return nil
	})
	if err != nil || code != exitOK {
		t.Fatalf("code %d, %v", code, err)
	}
}

// until calls then when text was written.
type until struct {
	w    *bytes.Buffer
	text string
	then func()
	seen bool
}

func (u *until) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(u.text)) {
		u.seen = true
		u.then()
	}
	return u.w.Write(p)
}

// TestReportStale: what is said of an API server that goes and comes back.
func TestReportStale(t *testing.T) {
	services, slices := &watch.StaleError{Kind: "Service"}, &watch.StaleError{Kind: "EndpointSlice"}
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	said := false
	for _, step := range []struct {
		err  error
		want string // "" is nothing
	}{
		{nil, ""},
		{services, "Service objects"},
		{services, ""},
		{slices, ""},
		{nil, "followed again"},
		{nil, ""},
		{services, "Service objects"},
	} {
		out.Reset()
		said = report(step.err, said, staleNews, log)
		if got := out.String(); (got == "") != (step.want == "") || !strings.Contains(got, step.want) {
			t.Errorf("%v: logged %q, want %q", step.err, got, step.want)
		}
	}
}
