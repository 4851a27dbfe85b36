package main

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/kube-proxy/config/v1alpha1"

	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/service"
)

// aliases are flags of kube-proxy's that mean what others do, or another command.
type aliases struct {
	hostname      string
	proxyMode     string
	logging       string
	healthzPort   int32
	metricsPort   int32
	oomScoreAdj   int32
	cleanup       bool
	initOnly      bool
	writeConfigTo string
}

func (f *proxyFlags) registerAliases(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.hostname, "hostname-override", "", "the same as --node-name")
	flags.StringVar(&f.proxyMode, "proxy-mode", "", "kube-proxy's mode: iptables is that of --mode; others are known, and Services served as --mode says")
	flags.StringVar(&f.logging, "logging-format", "", "the same as --log-format")
	flags.StringVar(&f.master, "master", "", "URL of the API server, in place of the kubeconfig's")
	flags.Int32Var(&f.healthzPort, "healthz-port", 0, "the port of --healthz-bind-address; 0 is nowhere")
	flags.Int32Var(&f.metricsPort, "metrics-port", 0, "the port of --metrics-bind-address; 0 is nowhere")
	flags.Int32Var(&f.oomScoreAdj, "oom-score-adj", 0, "the oom_score_adj of this process, -1000 to 1000 (default: as it was started)")
	flags.BoolVar(&f.cleanup, "cleanup", false, "remove what the proxy programmed, and end")
	flags.BoolVar(&f.initOnly, "init-only", false, "set what --conntrack-… say, and end")
	flags.StringVar(&f.writeConfigTo, "write-config-to", "", "write what the flags say to this file, as kube-proxy's configuration, and end")
}

// resolveAliases makes of them what they mean.
func (f *proxyFlags) resolveAliases(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	if changed("hostname-override") {
		if strings.TrimSpace(f.hostname) == "" {
			return usagef("--hostname-override %q: must not be empty", f.hostname)
		}
		f.nodeName = strings.ToLower(strings.TrimSpace(f.hostname))
	}
	if changed("logging-format") {
		f.logFormat = f.logging
	}
	if changed("bind-address") {
		health, metrics := f.kube.defaultAddresses()
		for name, addr := range map[string]struct {
			set       *string
			otherwise string
		}{
			"healthz-bind-address": {&f.kube.HealthzBindAddress, health},
			"metrics-bind-address": {&f.kube.MetricsBindAddress, metrics},
		} {
			if !changed(name) {
				*addr.set = addr.otherwise
			}
		}
	}
	f.modeGiven = changed("mode")
	f.kube.Mode = v1alpha1.ProxyMode(f.proxyMode)
	f.kube.ClientConnection.Kubeconfig = f.kubeconfig
	bit := int32(f.masqueradeBit)
	f.kube.IPTables.MasqueradeBit = &bit
	if changed("oom-score-adj") {
		f.kube.OOMScoreAdj = &f.oomScoreAdj
	}
	for name, port := range map[string]struct {
		number int32
		addr   *string
	}{
		"healthz-port": {f.healthzPort, &f.kube.HealthzBindAddress},
		"metrics-port": {f.metricsPort, &f.kube.MetricsBindAddress},
	} {
		host, _, err := net.SplitHostPort(*port.addr)
		switch {
		case !changed(name) || err != nil:
		case port.number == 0:
			*port.addr = ""
		default:
			*port.addr = net.JoinHostPort(host, strconv.Itoa(int(port.number)))
		}
	}
	return nil
}

// proxySettings are what the flags or the file say, checked.
type proxySettings struct {
	service service.Config
	limits  conntrack.Limits
}

// settings checks everything that is said of the node, the cluster and the kernel.
func (f proxyFlags) settings(e env) (proxySettings, error) {
	s := proxySettings{service: service.Config{NodeName: f.nodeName, SourceRangesOnNodePorts: f.rangesOnNodePorts}}
	var err error
	if s.limits, err = f.kube.limits(runtime.NumCPU()); err != nil {
		return s, err
	}
	for _, check := range []func() error{
		f.kube.checkMode, f.kube.checkPeriods, f.checkMasqueradeBit,
		func() error { return f.kube.apply(&s.service) },
		func() error {
			return f.kube.checkAddr("healthzBindAddress", "healthz-bind-address", f.kube.HealthzBindAddress)
		},
		func() error {
			return f.kube.checkAddr("metricsBindAddress", "metrics-bind-address", f.kube.MetricsBindAddress)
		},
	} {
		if err := check(); err != nil {
			return s, err
		}
	}
	if s.service.NodeName == "" {
		hostname, err := e.hostname()
		if err != nil {
			return s, fmt.Errorf("find the node's name: %w: give it by --node-name", err)
		}
		s.service.NodeName = strings.ToLower(hostname)
	}
	return s, nil
}

func (f proxyFlags) checkMasqueradeBit() error {
	if bit := f.kube.IPTables.MasqueradeBit; *bit < 0 || *bit > 31 {
		return f.kube.wrong("iptables.masqueradeBit", "iptables-masquerade-bit", *bit, "0 to 31")
	}
	return nil
}

// chooseMode: who has told kube-proxy to use iptables gets that, unless --mode says
// otherwise. What else there is in kube-proxy Fairlead does not have.
func (f *proxyFlags) chooseMode() {
	if f.kube.Mode == modeIptables && !f.modeGiven {
		f.mode = modeIptables
	}
}

// whyMode says why a mode is in use.
func (f proxyFlags) whyMode(used string) string {
	switch {
	case !f.modeGiven && f.kube.Mode == modeIptables:
		return "kube-proxy's configuration"
	case f.mode == modeAuto && used == modeEBPF:
		return "--mode auto, as the kernel can"
	case f.mode == modeAuto:
		return "--mode auto, as eBPF cannot be used"
	}
	return "--mode " + f.mode
}

// report logs what was given and means nothing here, or less than it seems.
func (f proxyFlags) report(s proxySettings, log *slog.Logger) {
	for _, n := range f.notes {
		log.Info("accepted, but it has no effect", "setting", n.name, "because", n.why)
	}
	if mode := f.kube.Mode; mode != "" && string(mode) != f.mode {
		log.Info("kube-proxy's mode is not the one in use: Services are served all the same", "kube-proxy", mode, "mode", f.mode)
	}
	if *f.kube.IPTables.LocalhostNodePorts && !s.service.LocalhostNodePorts {
		log.Info("node ports are not on localhost: nodePortAddresses has no address of 127.0.0.0/8", "nodePortAddresses", f.kube.NodePortAddresses)
	}
	if f.kube.DetectLocalMode == modeClusterCIDR && f.kube.ClusterCIDR == "" {
		log.Info("pods are to be known by ranges of the cluster, of which there are none: nobody is masqueraded at cluster IPs (see clusterCIDR and detectLocalMode)")
	}
}

// applyToProcess sets what is not the kernel's Services. Those work without it too.
func (f proxyFlags) applyToProcess(s proxySettings, log *slog.Logger) {
	if err := s.limits.Apply(); err != nil {
		log.Warn("limits of connection tracking stay as they are", "error", err)
	}
	if f.kube.OOMScoreAdj == nil {
		return
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(int(*f.kube.OOMScoreAdj))), 0); err != nil {
		log.Warn("oom_score_adj stays as it is", "error", err)
	}
}
