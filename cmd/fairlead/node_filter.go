package main

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/filter"
	"github.com/fairlead/fairlead/cni/host/nftnews"
	"github.com/fairlead/fairlead/cni/link"
	cninode "github.com/fairlead/fairlead/cni/node"
)

// listenFilter has l.flushed tell when what pods have in nftables may be gone.
func (l *nodeLoop) listenFilter(ctx context.Context) error {
	const pluginTable = "fairlead-cni"
	var err error
	l.flushed, err = nftnews.Listen(ctx, func(e nftnews.Event) bool {
		// Elements go with each pod. All else goes by others only.
		gone := e.Kind == unix.NFT_MSG_DELTABLE || e.Kind == unix.NFT_MSG_DELRULE || e.Kind == unix.NFT_MSG_DELSET
		return e.Lost || gone && e.Table == pluginTable
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil // no nftables, nothing to lose
	}
	return err
}

// repairFilter has the packet filter have of the pods what it had.
func (l *nodeLoop) repairFilter() {
	l.unfiltered = nil
	for _, p := range cninode.Failed(l.name, repairFilter()) {
		p.Kind = "PodsNotFiltered"
		l.unfiltered = append(l.unfiltered, p)
	}
	if len(l.unfiltered) > 0 {
		l.metrics.Failed("filter")
	}
	l.report()
}

func repairFilter() error {
	host, err := link.Host()
	if err != nil {
		return err
	}
	defer host.Close()
	return filter.With(host, (*filter.Filter).Repair)
}
