package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/service"
)

const kubeadm = "testdata/kube-proxy/kubeadm.conf"

// settingsOf are those that a file leads to.
func settingsOf(t *testing.T, text string) (proxyFlags, proxySettings, error) {
	t.Helper()
	f := proxyFlags{kube: kubeProxyDefaults()}
	c, err := parseKubeProxy("config.conf", []byte(text))
	if err != nil {
		return f, proxySettings{}, err
	}
	f.adopt(c)
	s, err := f.settings(testEnv(nil, nil))
	return f, s, err
}

var comparable = cmpopts.EquateComparable(netip.Prefix{})

// The file that kubeadm writes means what it means to kube-proxy, but for node ports
// on localhost. Nothing in it is of no use.
func TestKubeadmConfig(t *testing.T) {
	text, err := os.ReadFile(kubeadm)
	if err != nil {
		t.Fatal(err)
	}
	f, s, err := settingsOf(t, string(text))
	if err != nil {
		t.Fatal(err)
	}
	want := service.Config{
		NodeName:      "node-1",
		Pods:          service.ByClusterCIDR,
		ClusterCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")},
		NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	}
	if diff := cmp.Diff(want, s.service, comparable); diff != "" {
		t.Error(diff)
	}
	limits := conntrack.Limits{Flows: s.limits.Flows, TCPEstablished: 24 * time.Hour, TCPCloseWait: time.Hour}
	if diff := cmp.Diff(limits, s.limits); diff != "" || s.limits.Flows < 128<<10 {
		t.Errorf("limits: %+v", s.limits)
	}
	if f.kubeconfig != "/var/lib/kube-proxy/kubeconfig.conf" || f.kube.HealthzBindAddress != "0.0.0.0:10256" ||
		f.kube.MetricsBindAddress != "127.0.0.1:10249" || f.masqueradeBit != 14 || len(f.kube.unused()) > 0 {
		t.Errorf("%+v, unused: %v", f, f.kube.unused())
	}
}

const header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

func TestConfigFields(t *testing.T) {
	prefix := netip.MustParsePrefix
	tests := []struct {
		text string
		want service.Config
	}{
		{"detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/8", service.Config{Pods: service.ByNodeCIDR, ClusterCIDRs: []netip.Prefix{prefix("10.0.0.0/8")}}},
		{"detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}", service.Config{Pods: service.ByInterface, PodInterfaces: []string{"cni0"}}},
		{"detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}", service.Config{Pods: service.ByInterface, PodInterfaces: []string{"veth+"}}},
		{"clusterCIDR: 10.0.0.0/8,fd00::/48\niptables: {masqueradeAll: true}", service.Config{
			Pods: service.ByClusterCIDR, ClusterCIDRs: []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd00::/48")}, MasqueradeAll: true}},
		{"nodePortAddresses: [primary, 10.0.0.0/8]", service.Config{Pods: service.ByClusterCIDR, NodePortPrimary: true, NodePortCIDRs: []netip.Prefix{prefix("10.0.0.0/8")}}},
		{"nodePortAddresses: [10.0.0.0/8]", service.Config{Pods: service.ByClusterCIDR, NodePortCIDRs: []netip.Prefix{prefix("10.0.0.0/8"), prefix("::/0")}}},
		{"nodePortAddresses: [primary]\niptables: {localhostNodePorts: true}", service.Config{Pods: service.ByClusterCIDR, NodePortPrimary: true}},
		{"nodePortAddresses: [localhost]\niptables: {localhostNodePorts: true}", service.Config{
			Pods: service.ByClusterCIDR, NodePortCIDRs: []netip.Prefix{prefix("127.0.0.0/8"), prefix("::1/128")}, LocalhostNodePorts: true}},
		{"hostnameOverride: other", service.Config{Pods: service.ByClusterCIDR, NodeName: "other"}},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			_, s, err := settingsOf(t, header+tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.NodeName == "" {
				tt.want.NodeName = "node-1"
			}
			if !strings.Contains(tt.text, "nodePortAddresses") {
				tt.want.NodePortCIDRs = []netip.Prefix{prefix("0.0.0.0/0"), prefix("::/0")}
			}
			if diff := cmp.Diff(tt.want, s.service, comparable); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What is wrong in a file is refused with the name of the field.
func TestWrongConfig(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", `--config config.conf: apiVersion "", kind "": must be kubeproxy.config.k8s.io/v1alpha1 and KubeProxyConfiguration`},
		{"apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration", `--config config.conf: apiVersion "kubelet.config.k8s.io/v1beta1", kind "KubeletConfiguration": must be kubeproxy.config.k8s.io/v1alpha1 and KubeProxyConfiguration`},
		{header + "iptables: {masqueradeAl: true}", `--config config.conf: unknown field "iptables.masqueradeAl"`},
		{header + "mode: [", `--config config.conf: line 3: did not find expected node content`},
		{header + "mode: a\nmode: b", `--config config.conf: unmarshal errors:`},
		{header + "clusterCIDR: 5", `--config config.conf: cannot unmarshal number into Go struct field KubeProxyConfiguration.clusterCIDR of type string`},
		{header + "clusterCIDR: 10.0.0.1/8", `--config config.conf: clusterCIDR "10.0.0.1/8": must be a range like 10.244.0.0/16 or fd00:10:244::/48`},
		{header + "detectLocalMode: BridgeInterface", `--config config.conf: detectLocal.bridgeInterface "": must be 1 to 15 characters of an interface's name, without spaces, / and +`},
		{header + "mode: kernelspace", `--config config.conf: mode "kernelspace": must be iptables, ipvs or nftables (or nothing)`},
		{header + "iptables: {masqueradeBit: 32}", `--config config.conf: iptables.masqueradeBit "32": must be 0 to 31`},
		{header + "healthzBindAddress: nowhere", `--config config.conf: healthzBindAddress "nowhere": must be an address and a port, like 0.0.0.0:10256 or [::]:10256`},
		{header + "conntrack: {udpTimeout: -1s}", `--config config.conf: conntrack.udpTimeout "-1000000000": must be 0 or more`},
		{header + "oomScoreAdj: 2000", `--config config.conf: oomScoreAdj "2000": must be -1000 to 1000`},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			_, _, err := settingsOf(t, tt.text)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

// What means nothing here is said, by the name that it has in the file or on the
// command line.
func TestUnusedSettings(t *testing.T) {
	f, _, err := settingsOf(t, header+`
featureGates: {Some: true}
ipvs: {scheduler: rr}
iptables: {syncPeriod: 30s}
clientConnection: {qps: 5}
nftables: {masqueradeAll: true}
logging: {verbosity: 4}
`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range f.kube.unused() {
		got = append(got, n.name)
	}
	if diff := cmp.Diff([]string{"clientConnection", "featureGates", "iptables", "ipvs", "logging", "nftables"}, got); diff != "" {
		t.Error(diff)
	}
	cmd := proxyCommand(testEnv(nil, nil))
	if err := cmd.ParseFlags(strings.Fields("-v=2 --ipvs-scheduler=rr --feature-gates=A=true --cluster-cidr=10.0.0.0/8 --kubeconfig=x --mode=iptables")); err != nil {
		t.Fatal(err)
	}
	got = nil
	for _, n := range unusedFlags(cmd) {
		got = append(got, n.name)
	}
	if diff := cmp.Diff([]string{"--feature-gates", "--ipvs-scheduler", "--v"}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"--cluster-cidr", "--kubeconfig"}, overruled(cmd)); diff != "" {
		t.Error(diff)
	}
}

// The proxy does what kube-proxy's file says, and what it says later, without an
// end; what becomes wrong is said and does not count.
func TestConfigFileIsFollowed(t *testing.T) {
	ns, dir := netns.NewT(t), t.TempDir()
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	manifests, config := filepath.Join(dir, "manifests"), filepath.Join(dir, "config.conf")
	text, err := os.ReadFile(kubeadm)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(manifests, "web.yaml"), `
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIPs: [10.96.0.10], ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.2]}]
`)
	text = bytes.Replace(text, []byte(`mode: ""`), []byte("mode: iptables"), 1)
	write(t, config, string(text))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var out, errs bytes.Buffer
	e := testEnv(&out, &errs)
	e.stderr = &until{w: &errs, text: "the configuration has become wrong", then: func() {
		write(t, config, strings.Replace(string(text), "clusterCIDR: 10.244.0.0/16", "clusterCIDR: 10.245.0.0/16", 1))
	}}
	ended := make(chan int, 1)
	go func() {
		_ = ns.Do(func() error {
			ended <- run(ctx, []string{"proxy", "--config", config, "--manifests", manifests, "--cluster-cidr", "192.0.2.0/24", "--inspect-socket", "", "--bpf-root", t.TempDir()}, e)
			return nil
		})
	}()
	rulesUntil := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			rules := ns.RunT(t, "iptables-save", "-t", "nat")
			if strings.Contains(rules, what) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("never came: %s\n%s", what, rules)
			}
		}
	}
	rulesUntil("-s 10.244.0.0/16 -j RETURN")
	for path, want := range map[string]string{
		"127.0.0.1:10249/proxyMode": "iptables",
		"127.0.0.1:10249/configz":   `{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration"`,
		"127.0.0.1:10249/metrics":   "fairlead_build_info",
		"127.0.0.1:10256/livez":     `"lastUpdated"`,
	} {
		if body := get(t, ns, "http://"+path); !strings.Contains(body, want) {
			t.Errorf("%s: %s", path, body)
		}
	}

	write(t, config, strings.Replace(string(text), "clusterCIDR: 10.244.0.0/16", "clusterCIDR: nonsense", 1))
	rulesUntil("-s 10.245.0.0/16 -j RETURN")
	stop()
	if code := <-ended; code != exitOK {
		t.Errorf("code %d", code)
	}
	log := errs.String()
	for _, want := range []string{
		"setting=--cluster-cidr because=\"--config says it\"",
		"the configuration has changed",
	} {
		if strings.Count(log, want) < 1 {
			t.Errorf("log misses %s:\n%s", want, log)
		}
	}
}

// write puts a file in the place of another at once, as ConfigMaps change.
func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// get asks inside a namespace, and waits for whoever is to answer.
func get(t *testing.T, ns *netns.NS, url string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = ns.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	var body bytes.Buffer
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := client.Get(url)
		if err == nil {
			_, err = body.ReadFrom(resp.Body)
			_ = resp.Body.Close()
		}
		if err == nil {
			return body.String()
		}
		if time.Now().After(deadline) {
			return fmt.Sprint(err)
		}
	}
}
