package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	cninode "github.com/fairlead/fairlead/cni/node"
	"github.com/fairlead/fairlead/proxy/watch"
)

// nodeFlags are the flags of 'fairlead node' as given.
type nodeFlags struct {
	manifests string
	nodeName  string
	routing   string
	vni       int
	port      int
	logFormat string
}

func nodeCommand(e env) *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Connect the pods of this node to those of all other nodes",
		Long: `Watches Nodes and programs routes to the pods of each: directly where the other
node is on the link, through VXLAN where it is not. Pods and nodes see each other
by their own addresses. It runs until SIGTERM or SIGINT; what it has programmed
stays and goes on working ('fairlead cleanup' removes it).`,
		Example: "  fairlead node --manifests /etc/fairlead/cluster --node-name node-1",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runNode(cmd.Context(), e, f)
		},
	}
	cmd.Flags().StringVar(&f.manifests, "manifests", "", "directory of YAML files with the objects, watched (required)")
	cmd.Flags().StringVar(&f.nodeName, "node-name", "", "name of this node's Node object (default: the host name in lower case)")
	cmd.Flags().StringVar(&f.routing, "routing", string(cninode.Auto), "how other nodes are reached: direct, vxlan, or auto for direct where they are on the link")
	cmd.Flags().IntVar(&f.vni, "vxlan-vni", 7250, "VXLAN network identifier (1 to 16777215), the same on all nodes")
	cmd.Flags().IntVar(&f.port, "vxlan-port", 4789, "UDP port of VXLAN (1 to 65535), the same on all nodes")
	cmd.Flags().StringVar(&f.logFormat, "log-format", "text", "text or json")
	return cmd
}

func runNode(ctx context.Context, e env, f nodeFlags) error {
	log, err := newLogger(e.stderr, f.logFormat)
	if err != nil {
		return err
	}
	options, err := f.options()
	if err != nil {
		return err
	}
	name, err := e.nodeName(f.nodeName)
	if err != nil {
		return err
	}
	if f.manifests == "" {
		return usagef("--manifests: missing: the directory with the objects of the cluster")
	}
	source, err := watch.NewDir(f.manifests)
	if err != nil {
		return usageError{fmt.Errorf("--manifests: %w", err)}
	}
	defer func() { _ = source.Close() }()
	kernel, err := cninode.Open()
	if err != nil {
		return err
	}
	defer kernel.Close()

	log.Info("node starts", "version", version, "node", name, "routing", options.Routing, "manifests", f.manifests)
	n := newNodeLoop(name, log)
	n.kernel, n.options = kernel, options
	err = n.run(ctx, source)
	log.Info("node ends; what is programmed stays")
	return err
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
	return cninode.Options{Routing: cninode.Routing(f.routing), VNI: f.vni, Port: f.port}, nil
}

// cleanupNode removes what 'fairlead node' programmed.
func cleanupNode() error {
	kernel, err := cninode.Open()
	if err != nil {
		return err
	}
	defer kernel.Close()
	return kernel.Cleanup()
}
