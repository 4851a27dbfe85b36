package proxy

import (
	"context"

	"github.com/fairlead/fairlead/proxy/service"
)

// Ask has ask called by the goroutine of Run, between two rounds: whoever wants to
// know whether the kernel has what the Table says must not look while it is told.
// Until ask returns the kernel is told nothing. The error is that of ctx, if Run did
// not come to it before that ended; ask may be called then all the same.
func (p *Proxy) Ask(ctx context.Context, ask func(*service.Table)) error {
	done := make(chan struct{})
	p.asking.Lock()
	p.asked = append(p.asked, func() {
		ask(p.Resolver.Table())
		close(done)
	})
	if p.wake != nil {
		p.wake()
	}
	p.asking.Unlock()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wakeBy says how Run's wait for news is ended when somebody asks; nil: it does not
// wait.
func (p *Proxy) wakeBy(wake context.CancelFunc) {
	p.asking.Lock()
	defer p.asking.Unlock()
	p.wake = wake
	if wake != nil && len(p.asked) > 0 {
		wake()
	}
}

// answer calls what was asked for.
func (p *Proxy) answer() {
	p.asking.Lock()
	asked := p.asked
	p.asked = nil
	p.asking.Unlock()
	for _, ask := range asked {
		ask()
	}
}
