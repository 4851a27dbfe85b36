package main

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/conntrack"
)

// It is told of packets that were dropped since the last time, once a minute.
func TestTrackingIsFollowed(t *testing.T) {
	start := time.Now()
	ticks, reads := make(chan time.Time), make(chan conntrack.Usage)
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		followTracking(ctx, ticks, func() (conntrack.Usage, error) {
			u := <-reads
			if u.Limit == 0 {
				return u, fs.ErrNotExist
			}
			return u, nil
		}, slog.New(slog.NewTextHandler(&out, nil)))
	}()
	usage := func(dropped uint64) conntrack.Usage { return conntrack.Usage{Flows: 90, Limit: 100, Dropped: dropped} }
	reads <- usage(7)
	for i, u := range []conntrack.Usage{usage(7), usage(9), usage(20), {}, usage(20), usage(21), usage(21), usage(30)} {
		ticks <- start.Add(time.Duration(i) * 20 * time.Second)
		reads <- u
	}
	cancel()
	<-ended
	var said []string
	for line := range strings.Lines(out.String()) {
		_, what, _ := strings.Cut(line, "no room for their flows\" ")
		what, _, _ = strings.Cut(what, " mend=")
		said = append(said, what)
	}
	want := []string{"dropped=2 flows=90 limit=100", "dropped=11 flows=90 limit=100", "dropped=10 flows=90 limit=100"}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Errorf("(-want +got)\n%s\n%s", diff, &out)
	}
}
