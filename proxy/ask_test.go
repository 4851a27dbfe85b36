package proxy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fairlead/fairlead/proxy/service"
)

// Who asks is not kept waiting by a loop that has nothing to do, and sees what the
// kernel was told.
func TestAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := make(script)
		p := Proxy{
			Source: source, Resolver: service.NewResolver(service.Config{}), Backend: &recorder{start: time.Now()},
			Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		}
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		impatient, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		if err := p.Ask(impatient, func(*service.Table) {}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before there was any news: %v", err)
		}
		source <- oneService("web")
		synctest.Wait()
		asked := time.Now()
		for range 2 {
			frontends := 0
			if err := p.Ask(ctx, func(table *service.Table) { frontends = len(table.Frontends) }); err != nil || frontends != 1 {
				t.Errorf("asked: %d frontends, %v", frontends, err)
			}
		}
		if took := time.Since(asked); took != 0 {
			t.Errorf("it took %s", took)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
