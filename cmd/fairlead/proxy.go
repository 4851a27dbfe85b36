package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/health"
	"github.com/fairlead/fairlead/proxy/inspect"
	"github.com/fairlead/fairlead/proxy/iptables"
	"github.com/fairlead/fairlead/proxy/metrics"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// proxyFlags are the flags of 'fairlead proxy' as given.
type proxyFlags struct {
	nodeName     string
	clusterCIDRs []string
	nodePorts    []string
	logFormat    string
	healthAddr   string
	metricsAddr  string
	inspectAt    string
	sourceFlags
	backendFlags
}

// backendFlags choose the backend and say how it is to work.
type backendFlags struct {
	mode            string
	iptablesVariant string
	masqueradeBit   uint8
}

func (f *backendFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.mode, "mode", "iptables", "how the kernel is programmed: iptables")
	cmd.Flags().StringVar(&f.iptablesVariant, "iptables-variant", "", `which iptables to use: legacy, nft or "" for what the host calls iptables`)
	cmd.Flags().Uint8Var(&f.masqueradeBit, "iptables-masquerade-bit", 14, "bit (0 to 31) of the packet mark that packets to be masqueraded have")
}

func proxyCommand(e env) *cobra.Command {
	var f proxyFlags
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Make the Services of the cluster work on this node",
		Long: `Watches Services, EndpointSlices and Nodes and programs the kernel so that flows
to a Service reach its endpoints in turn. It runs until SIGTERM or SIGINT; what it
has programmed stays and goes on working ('fairlead cleanup' removes it).`,
		Example: `  fairlead proxy --kubeconfig /etc/fairlead/kubeconfig
  fairlead proxy --manifests /etc/fairlead/services --node-name node-1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runProxy(cmd.Context(), e, f)
		},
	}
	cmd.Flags().StringVar(&f.nodeName, "node-name", "", "name of this node's Node object (default: the host name in lower case)")
	cmd.Flags().StringSliceVar(&f.clusterCIDRs, "cluster-cidr", nil, "ranges of all pods of the cluster (default: the pod CIDRs of this node's Node object)")
	cmd.Flags().StringSliceVar(&f.nodePorts, "nodeport-addresses", []string{"primary"}, `which of the node's addresses node ports are on: ranges, or primary, or all`)
	cmd.Flags().StringVar(&f.logFormat, "log-format", "text", "text or json")
	cmd.Flags().StringVar(&f.healthAddr, "healthz-bind-address", "0.0.0.0:10256", `where /healthz and /livez are answered; "" for nowhere`)
	cmd.Flags().StringVar(&f.metricsAddr, "metrics-bind-address", "127.0.0.1:10249", `where /metrics and /proxyMode are answered; "" for nowhere`)
	cmd.Flags().StringVar(&f.inspectAt, "inspect-socket", defaultSocket, `Unix socket at which 'fairlead status', 'services' and 'trace' are answered; "" for none`)
	f.sourceFlags.register(cmd)
	f.backendFlags.register(cmd)
	return cmd
}

func runProxy(ctx context.Context, e env, f proxyFlags) error {
	log, err := newLogger(e.stderr, f.logFormat)
	if err != nil {
		return err
	}
	config, err := f.serviceConfig(e)
	if err != nil {
		return err
	}
	source, from, err := f.open(config.NodeName, watch.NewKube)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	backend, err := f.newBackend(config.NodeName)
	if err != nil {
		return err
	}
	for _, err := range backend.Missing() {
		log.Warn("one address family is not served", "error", err)
	}
	events, err := openEvents(source, "fairlead-proxy", log)
	if err != nil {
		return err
	}
	p := proxy.Proxy{Source: source, Resolver: service.NewResolver(config), Backend: backend, Log: log, Events: events}
	stop, err := f.observe(ctx, &p, config.NodeName)
	if err != nil {
		return err
	}
	defer stop()
	defer f.inspect(&p, log, inspect.Facts{
		Version: version, Node: config.NodeName, Mode: f.mode, Backend: backend.String(),
		Source: strings.ReplaceAll(from.Key, "_", " ") + " " + from.Value.String(), Started: e.now(),
	})()
	log.Info("proxy starts", "version", version, "node", config.NodeName, "mode", f.mode, "backend", backend, from)
	if kube, ok := source.(*watch.Kube); ok {
		go logStale(ctx, kube, log)
	}
	err = p.Run(ctx)
	log.Info("proxy ends; what is programmed stays")
	return err
}

// observe adds to the proxy what answers others about it, until stop is called.
func (f proxyFlags) observe(ctx context.Context, p *proxy.Proxy, node string) (stop func(), err error) {
	monitor, counters := health.NewMonitor(node, time.Now), metrics.New(version, f.mode)
	if kube, ok := p.Source.(*watch.Kube); ok {
		monitor.Stale = kube.Stale
	}
	checks := health.NewNodePorts(monitor.Works)
	p.Observers, p.HealthChecks = []proxy.Observer{monitor, counters}, checks

	stopHealth, err := serve(ctx, "--healthz-bind-address", f.healthAddr, monitor.Handler())
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", counters.Handler())
	mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, f.mode)
	})
	stopMetrics, err := serve(ctx, "--metrics-bind-address", f.metricsAddr, mux)
	if err != nil {
		stopHealth()
		return nil, err
	}
	return func() { checks.Close(); stopMetrics(); stopHealth() }, nil
}

// inspect has the proxy answer operators, until stop is called. Services work
// without that, so that a failure is no more than logged.
func (f proxyFlags) inspect(p *proxy.Proxy, log *slog.Logger, facts inspect.Facts) (stop func()) {
	if f.inspectAt == "" {
		return func() {}
	}
	i := &inspect.Inspector{Facts: facts, View: p, Now: time.Now}
	if kube, ok := p.Source.(*watch.Kube); ok {
		i.Stale = kube.Stale
	}
	stop, err := i.Serve(f.inspectAt)
	if err != nil {
		log.Warn("operators get no answer from this proxy", "flag", "--inspect-socket", "error", err)
		return func() {}
	}
	p.Observers = append(p.Observers, i)
	return stop
}

// serviceConfig checks what is said of the node and the cluster.
func (f proxyFlags) serviceConfig(e env) (service.Config, error) {
	config := service.Config{NodeName: f.nodeName}
	var err error
	if config.ClusterCIDRs, err = parseCIDRs("--cluster-cidr", f.clusterCIDRs, ""); err != nil {
		return config, err
	}
	if len(config.ClusterCIDRs) > 0 {
		config.Pods = service.ByClusterCIDR
	}
	switch {
	case slices.Equal(f.nodePorts, []string{"primary"}):
	case slices.Equal(f.nodePorts, []string{"all"}):
		config.NodePortCIDRs = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	default:
		if config.NodePortCIDRs, err = parseCIDRs("--nodeport-addresses", f.nodePorts, ", or alone primary or all"); err != nil {
			return config, err
		}
	}
	if config.NodeName == "" {
		hostname, err := e.hostname()
		if err != nil {
			return config, fmt.Errorf("find the node's name: %w: give it by --node-name", err)
		}
		config.NodeName = strings.ToLower(hostname)
	}
	return config, nil
}

// parseCIDRs checks a flag's ranges. also is what else the flag allows.
func parseCIDRs(flag string, texts []string, also string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		cidr, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil || cidr != cidr.Masked() {
			return nil, usagef("%s %q: must be a range like 10.244.0.0/16 or fd00:10:244::/48%s", flag, text, also)
		}
		out = append(out, cidr)
	}
	return out, nil
}

// newBackend makes the backend that the flags ask for, for the node of that name.
func (f backendFlags) newBackend(node string) (*iptables.Backend, error) {
	if f.mode != "iptables" {
		return nil, usagef("--mode %q: allowed is iptables", f.mode)
	}
	switch f.iptablesVariant {
	case "", "legacy", "nft":
	default:
		return nil, usagef("--iptables-variant %q: allowed are legacy and nft", f.iptablesVariant)
	}
	if f.masqueradeBit > 31 {
		return nil, usagef("--iptables-masquerade-bit %d: allowed are 0 to 31", f.masqueradeBit)
	}
	return iptables.New(iptables.Config{Variant: f.iptablesVariant, MasqueradeMark: 1 << f.masqueradeBit, Node: node})
}

func newLogger(w io.Writer, format string) (*slog.Logger, error) {
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, nil)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, nil)), nil
	}
	return nil, usagef("--log-format %q: allowed are text and json", format)
}
