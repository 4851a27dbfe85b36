package conntrack

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// Who looks on is told of a flow that begins, and where it is led.
func TestWatch(t *testing.T) {
	ns, client := translating(t)
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	var mu sync.Mutex // guards seen
	var seen []Flow
	ended := make(chan error, 1)
	go func() {
		ended <- ns.Do(func() error {
			return Watch(ctx, func(f Flow) {
				mu.Lock()
				defer mu.Unlock()
				if f.Protocol == service.TCP {
					seen = append(seen, f)
				}
			}, func() { t.Error("news were lost") })
		})
	}()
	is := func(f Flow) bool {
		return f.Src.Addr() == netip.MustParseAddr("10.0.0.2") && f.Src == f.ToSrc &&
			f.Dst == netip.MustParseAddrPort("10.96.0.10:80") && f.ToDst == netip.MustParseAddrPort("10.0.0.1:80")
	}
	connect(t, ns, client)
	there := false
	for !there && ctx.Err() == nil { // nobody knows when it begins to listen
		must(t, client.Do(func() error {
			conn, err := net.DialTimeout("tcp", "10.96.0.10:80", 10*time.Second)
			if err != nil {
				return err
			}
			return conn.Close()
		}))
		mu.Lock()
		there = slices.ContainsFunc(seen, is)
		mu.Unlock()
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !there {
		t.Errorf("seen: %+v", seen)
	}
}
