package kube

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy/service"
)

// KubeProxyConfig is a configuration file for a kube-proxy that does what config
// says. By itself Fairlead waits for nothing between two changes and lets the
// kernel's limits be: this a kube-proxy must be told.
func KubeProxyConfig(config service.Config, kubeconfig string) string {
	nodePorts := "primary"
	switch {
	case len(config.NodePortCIDRs) > 0:
		nodePorts = `"` + strings.Join(texts(config.NodePortCIDRs), `", "`) + `"`
	case config.LocalhostNodePorts:
		nodePorts = "" // all, or localhost is none of them
	}
	pods := "detectLocalMode: NodeCIDR"
	if config.Pods == service.ByClusterCIDR {
		pods = fmt.Sprintf("detectLocalMode: ClusterCIDR\nclusterCIDR: %q", strings.Join(texts(config.ClusterCIDRs), ","))
	}
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: %s
clientConnection: {kubeconfig: %s}
nodePortAddresses: [%s]
iptables: {masqueradeAll: %t, localhostNodePorts: %t, minSyncPeriod: 1ms}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
%s
`, config.NodeName, kubeconfig, nodePorts, config.MasqueradeAll, config.LocalhostNodePorts, pods)
}

// StartKubeProxy runs a kube-proxy with a configuration file inside the namespace
// of a node. It uses iptables-legacy or iptables-nft, as variant says ("legacy",
// "nft"). All its data is in an empty directory.
func StartKubeProxy(ctx context.Context, ns *netns.NS, config, variant, dir string) (*Process, error) {
	program, err := Program(ctx, "kube-proxy")
	if err != nil {
		return nil, err
	}
	if err := linkIPTables(dir, variant); err != nil {
		return nil, err
	}
	return startProxy(ns, config, dir, program)
}

// StartFairlead runs 'fairlead proxy' as StartKubeProxy runs a kube-proxy, on the
// same configuration file.
func StartFairlead(ns *netns.NS, program, config, variant, dir string) (*Process, error) {
	return startProxy(ns, config, dir, program, append([]string{"proxy", "--iptables-variant", variant}, Alone(dir)...)...)
}

// StartFairleadEBPF runs it in mode ebpf, for the sockets of a cgroup. What it pins is
// below dir, and stays.
func StartFairleadEBPF(ns *netns.NS, program, config, cgroup, dir string) (*Process, error) {
	flags := append(Alone(dir), "--mode", "ebpf", "--cgroup-root", cgroup)
	return startProxy(ns, config, dir, program, append([]string{"proxy"}, flags...)...)
}

// Alone are flags for a 'fairlead proxy' in mode iptables that has nothing to do with
// others on the machine. A proxy in this mode removes what mode ebpf left: that is to be
// looked for below dir.
func Alone(dir string) []string {
	return []string{"--mode", "iptables", "--inspect-socket", "", "--bpf-root", filepath.Join(dir, "bpf")}
}

func startProxy(ns *netns.NS, config, dir, program string, args ...string) (*Process, error) {
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(program, append(args, "--config", file)...)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "XTABLES_LOCKFILE="+filepath.Join(dir, "xtables.lock"))
	return StartProcess(ns, filepath.Join(dir, filepath.Base(program)+".log"), cmd)
}

// linkIPTables makes iptables the given variant in a directory of commands.
func linkIPTables(dir, variant string) error {
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, command := range []string{"", "-save", "-restore"} {
			path, err := exec.LookPath(family + "-" + variant + command)
			if err != nil {
				return err
			}
			if err := os.Symlink(path, filepath.Join(dir, family+command)); err != nil {
				return err
			}
		}
	}
	return nil
}
