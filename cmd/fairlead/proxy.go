package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/kube-proxy/config/v1alpha1"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/health"
	"github.com/fairlead/fairlead/proxy/inspect"
	"github.com/fairlead/fairlead/proxy/iptables"
	"github.com/fairlead/fairlead/proxy/metrics"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// proxyFlags are the flags of 'fairlead proxy' as given.
type proxyFlags struct {
	config    string // file of kube-proxy's
	kube      kubeProxy
	nodeName  string
	logFormat string
	inspectAt string
	modeGiven bool // --mode, by whoever started us
	// rangesOnNodePorts is what kube-proxy does not have.
	rangesOnNodePorts bool
	notes             []setting // what was given and means nothing here
	aliases
	sourceFlags
	backendFlags
}

func proxyCommand(e env) *cobra.Command {
	f := proxyFlags{kube: kubeProxyDefaults()}
	cmd := &cobra.Command{
		Use:   "proxy",
		Short: "Make the Services of the cluster work on this node",
		Long: `Watches Services, EndpointSlices and Nodes and programs the kernel so that flows
to a Service reach its endpoints in turn. It runs until SIGTERM or SIGINT; what it
has programmed stays and goes on working ('fairlead cleanup' removes it).

It takes kube-proxy's configuration file and kube-proxy's flags. What they have that
means nothing here is accepted, and said in the log. With a file, as with kube-proxy,
flags of the same meaning do not count, but --hostname-override does. The file is
watched: the proxy goes over to what it says anew without a gap.`,
		Example: `  fairlead proxy --kubeconfig /etc/fairlead/kubeconfig
  fairlead proxy --config /var/lib/kube-proxy/config.conf
  fairlead proxy --manifests /etc/fairlead/services --node-name node-1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runProxy(cmd, e, f)
		},
	}
	cmd.Flags().StringVar(&f.config, "config", "", "kube-proxy's configuration file (KubeProxyConfiguration, v1alpha1)")
	cmd.Flags().StringVar(&f.nodeName, "node-name", "", "name of this node's Node object (default: the host name in lower case)")
	cmd.Flags().StringVar(&f.logFormat, "log-format", "text", "text or json")
	cmd.Flags().StringVar(&f.inspectAt, "inspect-socket", defaultSocket, `Unix socket at which 'fairlead status', 'services' and 'trace' are answered; "" for none`)
	cmd.Flags().BoolVar(&f.rangesOnNodePorts, "nodeport-source-ranges", false, "a Service's loadBalancerSourceRanges are for its node ports too")
	f.kube.register(cmd)
	f.registerAliases(cmd)
	registerUnused(cmd)
	f.sourceFlags.register(cmd)
	f.backendFlags.register(cmd)
	return cmd
}

func runProxy(cmd *cobra.Command, e env, f proxyFlags) error {
	ctx := cmd.Context()
	if err := f.resolveAliases(cmd); err != nil {
		return err
	}
	log, err := newLogger(e.stderr, f.logFormat)
	if err != nil {
		return err
	}
	switch {
	case f.cleanup:
		return cleanupProxy(ctx, f.backendFlags)
	case f.config != "":
		return f.follow(cmd, e, log)
	}
	f.notes = unusedFlags(cmd)
	return f.run(ctx, e, log)
}

// run is the proxy, until ctx ends.
func (f proxyFlags) run(ctx context.Context, e env, log *slog.Logger) error {
	settings, err := f.settings(e)
	if err != nil {
		return err
	}
	if f.writeConfigTo != "" {
		return f.kube.write(f.writeConfigTo)
	}
	if f.initOnly {
		f.applyToProcess(settings, log)
		return nil
	}
	f.chooseMode()
	f.report(settings, log)
	config := settings.service
	saveMemory()
	source, from, err := f.open(config.NodeName, watch.NewKube, log)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	backend, err := f.newBackend(config.NodeName, log)
	if err != nil {
		return err
	}
	why := f.whyMode(backend.mode)
	f.mode = backend.mode
	if b, ok := backend.Backend.(*iptables.Backend); ok {
		if err := b.Watch(ctx); err != nil {
			log.Warn("what others do to our rules is not noticed at once", "error", err)
		}
	}
	f.applyToProcess(settings, log)
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
		Version: version, Node: config.NodeName, Mode: f.mode, Why: why, Lacks: backend.lacks, Backend: backend.String(),
		Source: sourceName(from), Started: e.now(),
	})()
	log.Info("proxy starts", "version", version, "node", config.NodeName, "mode", f.mode, "backend", backend, from)
	if kube, ok := source.(*watch.Kube); ok {
		go logStale(ctx, kube, log)
	}
	go followKernel(ctx, &p, log)
	go followTracking(ctx, time.Tick(looksAtTracking), conntrack.ReadUsage, log)
	err = p.Run(ctx)
	log.Info("proxy ends; what is programmed stays")
	return err
}

// observe adds to the proxy what answers others about it, until stop is called.
func (f proxyFlags) observe(ctx context.Context, p *proxy.Proxy, node string) (stop func(), err error) {
	monitor, counters := health.NewMonitor(node, time.Now), metrics.New(version, f.mode)
	if kube, ok := p.Source.(*watch.Kube); ok {
		monitor.Stale = kube.Stale
		counters.Client()
	}
	monitor.Asked = counters.Asked
	counters.Tracking(conntrack.ReadUsage)
	f.countBackend(counters, p.Backend.(*backend).Backend)
	checks := health.NewNodePorts(monitor.Works)
	p.Observers, p.HealthChecks = []proxy.Observer{monitor, counters, &thrift{}}, checks

	stopHealth, err := serve(ctx, "--healthz-bind-address", f.kube.HealthzBindAddress, monitor.Handler())
	if err != nil {
		return nil, err
	}
	stopMetrics, err := serve(ctx, "--metrics-bind-address", f.kube.MetricsBindAddress, f.metricsHandler(counters))
	if err != nil {
		stopHealth()
		return nil, err
	}
	return func() { checks.Close(); stopMetrics(); stopHealth() }, nil
}

// countBackend adds to the metrics what the backend in use counts.
func (f proxyFlags) countBackend(counters *metrics.Metrics, used proxy.Backend) {
	if c, ok := used.(counter); ok && f.countedPorts > 0 {
		counters.CountConnections(f.countedPorts, c.Connections)
	}
	if r, ok := used.(reporter); ok {
		counters.CountOutcomes(func(tell func(path, outcome string, n uint64)) error {
			counts, err := r.Outcomes()
			for _, c := range counts {
				tell(c.Path, c.Name, c.Count)
			}
			return err
		})
	}
	if b, ok := used.(*iptables.Backend); ok {
		b.Report(counters.IPTables(b.Packets).Round)
	}
}

// metricsHandler answers what kube-proxy does at its metrics address.
func (f proxyFlags) metricsHandler(counters *metrics.Metrics) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", counters.Handler())
	mux.HandleFunc("GET /proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, f.mode)
	})
	mux.HandleFunc("GET /configz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{v1alpha1.GroupName: f.kube.KubeProxyConfiguration})
	})
	if f.kube.EnableProfiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// inspect has the proxy answer operators, until stop is called. Services work
// without that, so that a failure is no more than logged.
func (f proxyFlags) inspect(p *proxy.Proxy, log *slog.Logger, facts inspect.Facts) (stop func()) {
	if f.inspectAt == "" {
		return func() {}
	}
	i := &inspect.Inspector{Facts: facts, Kernel: kernel(p), View: p, Now: time.Now}
	if kube, ok := p.Source.(*watch.Kube); ok {
		i.Stale, i.Heard = kube.Stale, kube.Heard
	}
	stop, err := inspect.Serve(f.inspectAt, i.Handler())
	if err != nil {
		log.Warn("operators get no answer from this proxy", "flag", "--inspect-socket", "error", err)
		return func() {}
	}
	p.Observers = append(p.Observers, i)
	return stop
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
