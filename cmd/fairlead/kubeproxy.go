package main

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-proxy/config/v1alpha1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/service"
)

// kubeProxy is what kube-proxy can be told, in the form of its configuration file:
// by the file, or by flags of the same names and meaning.
type kubeProxy struct {
	v1alpha1.KubeProxyConfiguration
	file string // where it is from; "": flags
}

// kubeProxyDefaults are kube-proxy's, but for what is said of node ports.
func kubeProxyDefaults() kubeProxy {
	seconds := func(n int) *metav1.Duration { return &metav1.Duration{Duration: time.Duration(n) * time.Second} }
	maxPerCore, leastFlows, localhost := int32(32<<10), int32(128<<10), false
	var c kubeProxy
	c.APIVersion, c.Kind = v1alpha1.SchemeGroupVersion.String(), kindKubeProxy
	c.BindAddress = "0.0.0.0"
	c.HealthzBindAddress, c.MetricsBindAddress = c.defaultAddresses()
	c.NodePortAddresses = []string{"primary"}
	c.IPTables.LocalhostNodePorts = &localhost
	c.Conntrack.MaxPerCore, c.Conntrack.Min = &maxPerCore, &leastFlows
	c.Conntrack.TCPEstablishedTimeout, c.Conntrack.TCPCloseWaitTimeout = seconds(24*60*60), seconds(60*60)
	return c
}

const kindKubeProxy = "KubeProxyConfiguration"

// register binds the flags that mean something here to the fields that mean the
// same. (That of the masquerade bit is in backendFlags.)
func (c *kubeProxy) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&c.ClusterCIDR, "cluster-cidr", "", "ranges of all pods of the cluster, with commas between")
	flags.StringVar((*string)(&c.DetectLocalMode), "detect-local-mode", "", `by what packets of pods are known: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix (default: ClusterCIDR if there is one, else NodeCIDR)`)
	flags.StringVar(&c.DetectLocal.BridgeInterface, "pod-bridge-interface", "", "bridge of this node's pods, for --detect-local-mode BridgeInterface")
	flags.StringVar(&c.DetectLocal.InterfaceNamePrefix, "pod-interface-name-prefix", "", "how the names of this node's pods' interfaces begin, for --detect-local-mode InterfaceNamePrefix")
	flags.StringSliceVar(&c.NodePortAddresses, "nodeport-addresses", c.NodePortAddresses, "which of the node's addresses node ports are on: ranges, primary, localhost, all")
	flags.BoolVar(c.IPTables.LocalhostNodePorts, "iptables-localhost-nodeports", *c.IPTables.LocalhostNodePorts, "node ports are on 127.0.0.1 too, if --nodeport-addresses has it; route_localnet is then set, and guarded")
	flags.BoolVar(&c.IPTables.MasqueradeAll, "masquerade-all", false, "endpoints see an address of the node instead of the sender's, also behind cluster IPs")
	flags.StringVar(&c.BindAddress, "bind-address", c.BindAddress, "the family of the default health and metrics addresses; binds nothing")
	flags.StringVar(&c.HealthzBindAddress, "healthz-bind-address", c.HealthzBindAddress, `where /healthz and /livez are answered; "" for nowhere`)
	flags.StringVar(&c.MetricsBindAddress, "metrics-bind-address", c.MetricsBindAddress, `where /metrics, /proxyMode and /configz are answered; "" for nowhere`)
	flags.BoolVar(&c.EnableProfiling, "profiling", false, "answer /debug/pprof/ at --metrics-bind-address")
	flags.Int32Var(c.Conntrack.MaxPerCore, "conntrack-max-per-core", *c.Conntrack.MaxPerCore, "flows that the kernel tracks at most, for each CPU; 0 leaves it")
	flags.Int32Var(c.Conntrack.Min, "conntrack-min", *c.Conntrack.Min, "flows that the kernel tracks at least, however few CPUs there are")
	flags.DurationVar(&c.Conntrack.TCPEstablishedTimeout.Duration, "conntrack-tcp-timeout-established", c.Conntrack.TCPEstablishedTimeout.Duration, "for how long an idle TCP connection is tracked; 0 leaves it")
	flags.DurationVar(&c.Conntrack.TCPCloseWaitTimeout.Duration, "conntrack-tcp-timeout-close-wait", c.Conntrack.TCPCloseWaitTimeout.Duration, "for how long one is that only one side has closed; 0 leaves it")
	flags.BoolVar(&c.Conntrack.TCPBeLiberal, "conntrack-tcp-be-liberal", false, "TCP segments outside of the window are not taken for invalid")
	flags.DurationVar(&c.Conntrack.UDPTimeout.Duration, "conntrack-udp-timeout", 0, "for how long an unanswered UDP flow is tracked; 0 leaves it")
	flags.DurationVar(&c.Conntrack.UDPStreamTimeout.Duration, "conntrack-udp-timeout-stream", 0, "for how long an answered UDP flow is tracked; 0 leaves it")
}

// readKubeProxy reads kube-proxy's configuration file. What kube-proxy does without
// a field it means here too.
func readKubeProxy(path string) (kubeProxy, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return kubeProxy{}, usageError{fmt.Errorf("--config: %w", err)}
	}
	return parseKubeProxy(path, text)
}

func parseKubeProxy(path string, text []byte) (kubeProxy, error) {
	c := kubeProxy{file: path}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return c, usagef("--config %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	strict, err := kjson.UnmarshalStrict(asJSON, &c.KubeProxyConfiguration)
	if err != nil {
		return c, usagef("--config %s: %s", path, strings.TrimPrefix(err.Error(), "json: "))
	}
	if len(strict) > 0 {
		return c, usagef("--config %s: %w", path, strict[0])
	}
	if want := v1alpha1.SchemeGroupVersion.String(); c.APIVersion != want || c.Kind != kindKubeProxy {
		return c, usagef("--config %s: apiVersion %q, kind %q: must be %s and %s", path, c.APIVersion, c.Kind, want, kindKubeProxy)
	}
	c.fill()
	return c, nil
}

// fill sets what kube-proxy sets where the file says nothing. Only node ports on
// localhost must be asked for.
func (c *kubeProxy) fill() {
	d := kubeProxyDefaults()
	if c.BindAddress == "" {
		c.BindAddress = d.BindAddress
	}
	health, metrics := c.defaultAddresses()
	c.HealthzBindAddress = withPort(c.HealthzBindAddress, health)
	c.MetricsBindAddress = withPort(c.MetricsBindAddress, metrics)
	if len(c.NodePortAddresses) == 0 {
		c.NodePortAddresses = []string{"all"}
	}
	if c.DetectLocalMode == "" {
		c.DetectLocalMode = modeClusterCIDR
	}
	bit := int32(14)
	orElse(&c.IPTables.MasqueradeBit, &bit)
	orElse(&c.IPTables.LocalhostNodePorts, d.IPTables.LocalhostNodePorts)
	orElse(&c.Conntrack.MaxPerCore, d.Conntrack.MaxPerCore)
	orElse(&c.Conntrack.Min, d.Conntrack.Min)
	orElse(&c.Conntrack.TCPEstablishedTimeout, d.Conntrack.TCPEstablishedTimeout)
	orElse(&c.Conntrack.TCPCloseWaitTimeout, d.Conntrack.TCPCloseWaitTimeout)
}

// defaultAddresses are of the family of BindAddress.
func (c *kubeProxy) defaultAddresses() (health, metrics string) {
	if addr, err := netip.ParseAddr(c.BindAddress); err == nil && addr.Is6() {
		return "[::]:10256", "[::1]:10249"
	}
	return "0.0.0.0:10256", "127.0.0.1:10249"
}

func orElse[T any](field **T, absent *T) {
	if *field == nil {
		*field = absent
	}
}

// withPort is addr, with the port of otherwise if it has none, and otherwise if it
// is nothing.
func withPort(addr, otherwise string) string {
	if addr == "" {
		return otherwise
	}
	if ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
		_, port, _ := net.SplitHostPort(otherwise)
		return net.JoinHostPort(ip.String(), port)
	}
	return addr
}

// called is what kube-proxy calls a setting: in the file its field, on the command
// line its flag.
func (c *kubeProxy) called(field, flag string) string {
	if c.file == "" {
		return "--" + flag
	}
	return fmt.Sprintf("--config %s: %s", c.file, field)
}

func (c *kubeProxy) wrong(field, flag string, value any, must string) error {
	return usagef("%s %q: must be %s", c.called(field, flag), fmt.Sprint(value), must)
}

// Modes to know pods by, in kube-proxy's words.
const (
	modeClusterCIDR = "ClusterCIDR"
	modeNodeCIDR    = "NodeCIDR"
	modeBridge      = "BridgeInterface"
	modePrefix      = "InterfaceNamePrefix"
)

// apply adds to config what is said of the node and the cluster.
func (c *kubeProxy) apply(config *service.Config) error {
	config.MasqueradeAll = c.IPTables.MasqueradeAll
	if err := c.applyPods(config); err != nil {
		return err
	}
	if err := c.applyNodePorts(config); err != nil {
		return err
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	config.LocalhostNodePorts = *c.IPTables.LocalhostNodePorts &&
		slices.ContainsFunc(config.NodePortCIDRs, func(p netip.Prefix) bool { return p.Contains(loopback) })
	return nil
}

func (c *kubeProxy) applyPods(config *service.Config) error {
	var err error
	if c.ClusterCIDR != "" {
		if config.ClusterCIDRs, err = c.ranges("clusterCIDR", "cluster-cidr", strings.Split(c.ClusterCIDR, ","), ""); err != nil {
			return err
		}
	}
	switch mode := c.DetectLocalMode; {
	case mode == "" && len(config.ClusterCIDRs) > 0, mode == modeClusterCIDR:
		config.Pods = service.ByClusterCIDR
	case mode == "", mode == modeNodeCIDR:
		config.Pods = service.ByNodeCIDR
	case mode == modeBridge:
		config.Pods, config.PodInterfaces = service.ByInterface, []string{c.DetectLocal.BridgeInterface}
		return c.checkInterface("detectLocal.bridgeInterface", "pod-bridge-interface", c.DetectLocal.BridgeInterface)
	case mode == modePrefix:
		config.Pods, config.PodInterfaces = service.ByInterface, []string{c.DetectLocal.InterfaceNamePrefix + "+"}
		return c.checkInterface("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix", c.DetectLocal.InterfaceNamePrefix)
	default:
		return c.wrong("detectLocalMode", "detect-local-mode", mode, strings.Join([]string{modeClusterCIDR, modeNodeCIDR, modeBridge}, ", ")+" or "+modePrefix)
	}
	return nil
}

// checkInterface checks the name of an interface, or its beginning.
func (c *kubeProxy) checkInterface(field, flag, name string) error {
	if name == "" || len(name) > 15 || strings.ContainsAny(name, " \t\n/+") { // IFNAMSIZ less the end
		return c.wrong(field, flag, name, "1 to 15 characters of an interface's name, without spaces, / and +")
	}
	return nil
}

// applyNodePorts says which addresses node ports are on. As kube-proxy has it,
// ranges of one family say nothing of the other, in which then all are meant.
func (c *kubeProxy) applyNodePorts(config *service.Config) error {
	keywords := map[string][]string{"localhost": {"127.0.0.0/8", "::1/128"}, "all": {"0.0.0.0/0", "::/0"}}
	var texts []string
	for _, text := range c.NodePortAddresses {
		switch expanded, ok := keywords[text]; {
		case text == "primary":
			config.NodePortPrimary = true
		case ok:
			texts = append(texts, expanded...)
		default:
			texts = append(texts, text)
		}
	}
	var err error
	config.NodePortCIDRs, err = c.ranges("nodePortAddresses", "nodeport-addresses", texts, ", or primary, localhost or all")
	if err != nil || config.NodePortPrimary || len(texts) == 0 {
		return err
	}
	for _, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if !slices.ContainsFunc(config.NodePortCIDRs, func(p netip.Prefix) bool { return p.Addr().Is6() == all.Is6() }) {
			config.NodePortCIDRs = append(config.NodePortCIDRs, netip.PrefixFrom(all, 0))
		}
	}
	return nil
}

// ranges checks ranges. also is what else is allowed.
func (c *kubeProxy) ranges(field, flag string, texts []string, also string) ([]netip.Prefix, error) {
	return parseCIDRs(c.called(field, flag), texts, also)
}

// parseCIDRs checks ranges of a setting of that name. also is what else it allows.
func parseCIDRs(setting string, texts []string, also string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		cidr, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || cidr != cidr.Masked() {
			return nil, usagef("%s %q: must be a range like 10.244.0.0/16 or fd00:10:244::/48%s", setting, text, also)
		}
		out = append(out, cidr)
	}
	return out, nil
}

// limits are what the kernel's connection tracking is told.
func (c *kubeProxy) limits(cpus int) (conntrack.Limits, error) {
	ct := c.Conntrack
	for _, n := range []struct {
		field, flag string
		value       int64
	}{
		{"conntrack.maxPerCore", "conntrack-max-per-core", int64(*ct.MaxPerCore)},
		{"conntrack.min", "conntrack-min", int64(*ct.Min)},
		{"conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established", int64(ct.TCPEstablishedTimeout.Duration)},
		{"conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait", int64(ct.TCPCloseWaitTimeout.Duration)},
		{"conntrack.udpTimeout", "conntrack-udp-timeout", int64(ct.UDPTimeout.Duration)},
		{"conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", int64(ct.UDPStreamTimeout.Duration)},
	} {
		if n.value < 0 {
			return conntrack.Limits{}, c.wrong(n.field, n.flag, n.value, "0 or more")
		}
	}
	l := conntrack.Limits{
		TCPEstablished: ct.TCPEstablishedTimeout.Duration, TCPCloseWait: ct.TCPCloseWaitTimeout.Duration,
		UDP: ct.UDPTimeout.Duration, UDPStream: ct.UDPStreamTimeout.Duration,
		TCPBeLiberal: ct.TCPBeLiberal,
	}
	if *ct.MaxPerCore > 0 {
		const most = 1 << 20 // a million tracked flows take 300 MB
		l.Flows = max(min(int(*ct.MaxPerCore)*cpus, most), int(*ct.Min))
	}
	return l, nil
}

// checkAddr checks an address to listen at.
func (c *kubeProxy) checkAddr(field, flag, addr string) error {
	if addr == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(addr)
	if n, bad := strconv.Atoi(port); err != nil || bad != nil || n < 0 || n > 65535 {
		return c.wrong(field, flag, addr, `an address and a port, like 0.0.0.0:10256 or [::]:10256`)
	}
	return nil
}

// write writes the configuration as a file of kube-proxy's.
func (c *kubeProxy) write(path string) error {
	text, err := yaml.Marshal(c.KubeProxyConfiguration)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.WriteFile(path, bytes.TrimSpace(append(text, '\n')), 0o600)
}
