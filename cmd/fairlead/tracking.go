package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/fairlead/fairlead/proxy/conntrack"
)

// followTracking logs, until ctx ends, that the kernel drops packets because it has no
// room to track their flows. At each tick it reads how that is; what was dropped before
// it began is no news.
func followTracking(ctx context.Context, ticks <-chan time.Time, read func() (conntrack.Usage, error), log *slog.Logger) {
	first, _ := read() // an error: nothing is tracked yet
	dropped, said := first.Dropped, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticks:
			usage, err := read()
			if err != nil || usage.Dropped == dropped || now.Sub(said) < sayAgain {
				continue
			}
			log.Warn("packets are dropped: connection tracking has no room for their flows",
				"dropped", usage.Dropped-dropped, "flows", usage.Flows, "limit", usage.Limit,
				"mend", "raise net.netfilter.nf_conntrack_max, or --conntrack-min")
			dropped, said = usage.Dropped, now
		}
	}
}

// looksAtTracking is how often followTracking reads.
const looksAtTracking = 10 * time.Second
