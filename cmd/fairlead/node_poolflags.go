package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/fairlead/fairlead/ipam/disk"
	"github.com/fairlead/fairlead/ipam/pool/kube"
)

// poolFlags say how blocks of the cluster's pools are leased.
type poolFlags struct {
	dataDir string
	grace   time.Duration
}

func (f *poolFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.dataDir, "ipam-data-dir", disk.DefaultDir, "directory of the stores of addresses: ipam.dataDir of the network configurations")
	cmd.Flags().DurationVar(&f.grace, "pool-grace-period", 10*time.Minute, "how long a Node must be gone before its blocks of pools go to nodes that need them")
}

// newPools is what leases blocks. It asks the API server, or else takes what the
// manifests assign.
func (f poolFlags) newPools(name string, from sourceFlags, bootID func() (string, error)) *nodePools {
	stores := &nodeStores{dataDir: f.dataDir, bootID: bootID}
	if from.manifests != "" {
		return newNodePools(name, stores, f.grace, nil)
	}
	return newNodePools(name, stores, f.grace, func() (*kube.Source, error) {
		config, err := from.restConfig()
		if err != nil {
			return nil, err
		}
		config.UserAgent = "fairlead/" + version
		return kube.New(config)
	})
}

// startPools has blocks leased until the function that it returns is called.
func (l *nodeLoop) startPools(ctx context.Context) (stop func()) {
	l.pools.log, l.pools.events = l.log, l.events
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := l.pools.run(ctx); err != nil && ctx.Err() == nil {
			l.log.Error("no blocks are leased any more", "error", err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}
