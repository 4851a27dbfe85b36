package datapath

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The candidates.
const (
	Direct            = "direct" // no proxy and no netfilter: the baseline
	Iptables          = "iptables"
	IptablesLegacy    = "iptables-legacy"
	IptablesNFT       = "iptables-nft"
	EBPF              = "ebpf"
	KubeProxyIptables = "kube-proxy-iptables"
	KubeProxyNftables = "kube-proxy-nftables"

	// twin is a second baseline: by how much it differs from the first is what
	// nothing can be said about.
	twin = "direct again"
)

// Candidates are the names that Options.Candidates may have.
var Candidates = []string{Direct, Iptables, IptablesLegacy, IptablesNFT, EBPF, KubeProxyIptables, KubeProxyNftables}

// isDirect says that no proxy is there.
func isDirect(candidate string) bool { return candidate == Direct || candidate == twin }

func isKubeProxy(candidate string) bool { return strings.HasPrefix(candidate, "kube-proxy-") }

// inTurn says that the candidate promises to lead connections to backends in
// turn, and not by chance.
func inTurn(candidate string) bool { return !isKubeProxy(candidate) }

// programs is where the programs are.
type programs struct{ binDir, kubeProxy string }

func (p programs) fairlead() string { return filepath.Join(p.binDir, "fairlead") }
func (p programs) lab() string      { return filepath.Join(p.binDir, "fairlead-lab") }

// proxyCommand is the candidate's proxy in a world.
func (w *world) proxyCommand() *exec.Cmd {
	if isKubeProxy(w.candidate) {
		return exec.Command(w.programs.kubeProxy, append(w.kubeProxyMode(),
			"--kubeconfig", w.kubeconfig, "--hostname-override", nodeName,
			"--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56", "--conntrack-max-per-core", "0",
			"--healthz-bind-address", "127.0.0.1:10256", "--metrics-bind-address", metricsAddr)...)
	}
	return w.fairleadCommand(w.candidate)
}

// fairleadCommand is fairlead proxy as some candidate in this world.
func (w *world) fairleadCommand(candidate string) *exec.Cmd {
	return exec.Command(w.programs.fairlead(), append([]string{"proxy",
		"--kubeconfig", w.kubeconfig, "--node-name", nodeName, "--inspect-socket", filepath.Join(w.dir, "proxy.sock"),
		"--healthz-bind-address", "127.0.0.1:10256", "--metrics-bind-address", metricsAddr}, w.modeFlags(candidate)...)...)
}

// otherMode is, of the candidates, one of Fairlead's other mode, "" if there is none.
func otherMode(candidate string, candidates []string) string {
	ofFairlead := func(c string) bool { return !isDirect(c) && !isKubeProxy(c) }
	i := slices.IndexFunc(candidates, func(c string) bool {
		return ofFairlead(c) && ofFairlead(candidate) && (c == EBPF) != (candidate == EBPF)
	})
	if i < 0 {
		return ""
	}
	return candidates[i]
}

// cleanupCommand removes what the proxy has programmed.
func (w *world) cleanupCommand() *exec.Cmd {
	if isKubeProxy(w.candidate) {
		return exec.Command(w.programs.kubeProxy, append(w.kubeProxyMode(), "--cleanup")...)
	}
	return exec.Command(w.programs.fairlead(), append([]string{"cleanup"}, w.whereFlags(w.candidate)...)...)
}

func (w *world) kubeProxyMode() []string {
	return []string{"--proxy-mode", strings.TrimPrefix(w.candidate, "kube-proxy-")}
}

// modeFlags are a candidate's flags of fairlead proxy. In every mode it says where
// the other's work would be, which it removes.
func (w *world) modeFlags(candidate string) []string {
	mode := "iptables"
	if candidate == EBPF {
		mode = "ebpf"
	}
	return append([]string{"--mode", mode}, w.whereFlags(candidate)...)
}

func (w *world) whereFlags(candidate string) []string {
	flags := []string{"--cgroup-root", w.cgroup, "--bpf-root", w.bpf}
	if variant, ok := strings.CutPrefix(candidate, "iptables-"); ok {
		flags = append(flags, "--iptables-variant", variant)
	}
	return flags
}

// Preflight says in one sentence why this machine or these options cannot be
// measured, nil if they can. It changes nothing.
func Preflight(o Options) error {
	for _, name := range o.Candidates {
		if !slices.Contains(Candidates, name) {
			return fmt.Errorf("measure candidate %q: allowed are %s", name, strings.Join(Candidates, ", "))
		}
		if isKubeProxy(name) && o.KubeProxy == "" {
			return fmt.Errorf("measure %s: say where kube-proxy is, by --kube-proxy", name)
		}
	}
	if !slices.Contains(o.Candidates, Direct) || len(o.Candidates) < 2 {
		return fmt.Errorf("measure %s: %s and one candidate more are needed, all else is compared with it", strings.Join(o.Candidates, ", "), Direct)
	}
	for _, n := range o.Services {
		if n < 1 || n > MaxServices {
			return fmt.Errorf("measure with %d Services: allowed are 1 to %d", n, MaxServices)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("make network namespaces: this needs root")
	}
	return findPrograms(o)
}

func findPrograms(o Options) error {
	p := programs{o.BinDir, o.KubeProxy}
	for _, path := range []string{p.fairlead(), p.lab()} {
		if _, err := exec.LookPath(path); err != nil {
			return fmt.Errorf("find program %s in %s: run make build first", filepath.Base(path), o.BinDir)
		}
	}
	if o.KubeProxy != "" {
		if _, err := exec.LookPath(o.KubeProxy); err != nil {
			return fmt.Errorf("find program kube-proxy: %w", err)
		}
	}
	for candidate, program := range map[string]string{
		Iptables: "iptables-restore", IptablesLegacy: "iptables-legacy-restore", IptablesNFT: "iptables-nft-restore",
		KubeProxyIptables: "iptables-restore", KubeProxyNftables: "nft",
	} {
		if _, err := exec.LookPath(program); err != nil && slices.Contains(o.Candidates, candidate) {
			return fmt.Errorf("measure %s: there is no program %s: install the packages iptables and nftables", candidate, program)
		}
	}
	return nil
}
