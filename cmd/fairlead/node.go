package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/spf13/cobra"

	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/cni/node/install"
	"github.com/fairlead/fairlead/cni/node/masquerade"
	"github.com/fairlead/fairlead/cni/node/metrics"
	"github.com/fairlead/fairlead/cni/node/shim"
	"github.com/fairlead/fairlead/proxy/watch"
)

// nodeFlags are the flags of 'fairlead node' as given.
type nodeFlags struct {
	from          sourceFlags
	nodeName      string
	routing       string
	vni           int
	port          int
	mtu           int
	masquerade    string
	notMasquerade []string
	services      []string
	install       installFlags
	pools         poolFlags
	shim          shimFlags
	healthz       string
	metrics       string
	inspectAt     string
	logFormat     string
}

func nodeCommand(e env) *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Connect the pods of this node to those of all other nodes",
		Long: `Watches Nodes and programs routes to the pods of each: directly where the other
node is on the link, through VXLAN where it is not. Pods and nodes see each other
by their own addresses; what leaves the cluster gets the node's. When pods can be
connected it installs the CNI plugin and its configuration for the container
runtime. It runs until SIGTERM or SIGINT; what it has programmed stays and goes on
working ('fairlead cleanup' removes it).`,
		Example: `  fairlead node --kubeconfig /etc/fairlead/kubeconfig
  fairlead node --manifests /etc/fairlead/cluster --node-name node-1`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runNode(cmd.Context(), e, f)
		},
	}
	f.from.register(cmd)
	cmd.Flags().StringVar(&f.nodeName, "node-name", "", "name of this node's Node object (default: the host name in lower case)")
	cmd.Flags().StringVar(&f.routing, "routing", string(cninode.Auto), "how other nodes are reached: direct, vxlan, or auto for direct where they are on the link")
	cmd.Flags().IntVar(&f.vni, "vxlan-vni", 7250, "VXLAN network identifier (1 to 16777215), the same on all nodes")
	cmd.Flags().IntVar(&f.port, "vxlan-port", 4789, "UDP port of VXLAN (1 to 65535), the same on all nodes")
	cmd.Flags().IntVar(&f.mtu, "mtu", 0, "MTU of pods (1280 to 65535), the same on all nodes, where links of some nodes take less than those of others; 0 for what the ways from this node take")
	cmd.Flags().StringVar(&f.masquerade, "masquerade", "auto", "how what leaves the cluster gets the node's address: nftables, iptables, auto for what the kernel has, or none")
	cmd.Flags().StringSliceVar(&f.notMasquerade, "non-masquerade-cidrs", nil, "ranges that count as the cluster's, besides all pod CIDRs and node addresses")
	cmd.Flags().StringSliceVar(&f.services, "service-cidrs", nil, "ranges of the cluster's virtual IPs, in which no pods can be, besides those of ServiceCIDR objects")
	f.install.register(cmd)
	f.pools.register(cmd)
	f.shim.register(cmd)
	cmd.Flags().StringVar(&f.healthz, "healthz-bind-address", "", `address and port that answer /healthz and /readyz, "" for none`)
	cmd.Flags().StringVar(&f.metrics, "metrics-bind-address", "", `address and port that answer /metrics, "" for none`)
	cmd.Flags().StringVar(&f.inspectAt, "inspect-socket", defaultNodeSocket, `Unix socket at which 'fairlead status' is answered; "" for none`)
	cmd.Flags().StringVar(&f.logFormat, "log-format", "text", "text or json")
	return cmd
}

func runNode(ctx context.Context, e env, f nodeFlags) error {
	log, err := newLogger(e.stderr, f.logFormat)
	if err != nil {
		return err
	}
	n, err := f.newLoop(e)
	if err != nil {
		return err
	}
	n.log = log
	source, from, err := f.from.open(n.name, watch.NewKubeNodes, n.log)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	if n.events, err = openEvents(source, "fairlead-node", log); err != nil {
		return err
	}
	if err := n.open(ctx, f.masquerade); err != nil {
		return err
	}
	defer n.kernel.Close()
	n.inspector.facts = nodeStatus{
		Version: version, Node: n.name, Started: e.now(), Source: sourceName(from),
		Routing: string(n.options.Routing), Masquerade: f.masquerade,
	}
	if n.table != nil {
		n.inspector.facts.Masquerade = n.table.String()
	}
	if kube, ok := source.(*watch.Kube); ok {
		n.health.stale = kube.Stale
		n.inspector.stale, n.inspector.heard = kube.Stale, kube.Heard
		go logStale(ctx, kube, log)
	}
	stopShim, err := n.startShim(ctx)
	if err != nil {
		return err
	}
	defer stopShim()
	defer n.startPools(ctx)()
	stop, err := n.observe(ctx, f)
	if err != nil {
		return err
	}
	defer stop()
	n.inspector.peers = n.peers
	n.inspector.ranges = func(ctx context.Context) ([]usage, error) { return rangesIn(ctx, e, f.pools.dataDir) }
	defer n.serveStatus(f.inspectAt)()
	log.Info("node starts", "version", version, "node", n.name, "routing", n.options.Routing, "masquerade", n.table, from)
	err = n.run(ctx, source)
	log.Info("node ends; what is programmed stays")
	return err
}

// observe answers others about the loop until stop is called.
func (l *nodeLoop) observe(ctx context.Context, f nodeFlags) (stop func(), err error) {
	l.metrics = metrics.New(version)
	l.metrics.Addresses(func() ([]metrics.Range, error) { return l.installer.addresses(ctx) })
	l.metrics.Blocks(l.pools.leased)
	stopHealth, err := serve(ctx, "--healthz-bind-address", f.healthz, &l.health)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", l.metrics.Handler())
	stopMetrics, err := serve(ctx, "--metrics-bind-address", f.metrics, mux)
	if err != nil {
		stopHealth()
		return nil, err
	}
	return func() { stopMetrics(); stopHealth() }, nil
}

// newLoop checks the flags and changes nothing.
func (f nodeFlags) newLoop(e env) (*nodeLoop, error) {
	n := &nodeLoop{asked: make(chan func())}
	var err error
	if n.name, err = e.nodeName(f.nodeName); err != nil {
		return nil, err
	}
	if n.options, err = f.options(); err != nil {
		return nil, err
	}
	n.planner = cninode.NewPlanner(n.name, n.options)
	switch f.masquerade {
	case "auto", "nftables", "iptables", "none":
	default:
		return nil, usagef("--masquerade %q: allowed are auto, nftables, iptables and none", f.masquerade)
	}
	if n.notMasquerade, err = parseCIDRs("--non-masquerade-cidrs", f.notMasquerade, ""); err != nil {
		return nil, err
	}
	if f.pools.grace < 0 {
		return nil, usagef("--pool-grace-period %s: it must not be negative", f.pools.grace)
	}
	n.pools = f.pools.newPools(n.name, f.from, e.bootID)
	if n.shim, err = f.shim.newShim(); err != nil {
		return nil, err
	}
	n.pools.shim = n.shim
	if f.install.confDir != "" {
		n.guard = hostLocalGuard{dir: f.install.hostLocalDir, stores: n.pools.stores}
	}
	n.installer, err = f.install.newInstaller()
	return n, err
}

func (f nodeFlags) options() (cninode.Options, error) {
	switch cninode.Routing(f.routing) {
	case cninode.Auto, cninode.Direct, cninode.VXLAN:
	default:
		return cninode.Options{}, usagef("--routing %q: allowed are auto, direct and vxlan", f.routing)
	}
	if f.vni < 1 || f.vni >= 1<<24 {
		return cninode.Options{}, usagef("--vxlan-vni %d: allowed are 1 to 16777215", f.vni)
	}
	if f.port < 1 || f.port >= 1<<16 {
		return cninode.Options{}, usagef("--vxlan-port %d: allowed are 1 to 65535", f.port)
	}
	if f.mtu != 0 && (f.mtu < 1280 || f.mtu > 65535) { // IPv6's least: RFC 8200, section 5
		return cninode.Options{}, usagef("--mtu %d: allowed are 0 and 1280 to 65535", f.mtu)
	}
	services, err := parseCIDRs("--service-cidrs", f.services, "")
	return cninode.Options{Routing: cninode.Routing(f.routing), VNI: f.vni, Port: f.port, MTU: f.mtu, Services: services}, err
}

// cleanupNode removes what 'fairlead node' programmed and wrote. The configuration
// goes first: no pod is to be made that will not be connected.
func cleanupNode(confDir string) error {
	return errors.Join(
		install.RemoveConfig(confDir),
		masquerade.CleanupNFTables(),
		masquerade.CleanupIPTables(),
		shim.Cleanup(),
		cleanupRoutes(),
	)
}

func cleanupRoutes() error {
	kernel, err := cninode.Open()
	if err != nil {
		return err
	}
	defer kernel.Close()
	return kernel.Cleanup()
}
