package bpf_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/proxytest"
	"github.com/fairlead/fairlead/proxy/service"
)

// TestPackets has nobody in the cgroup whose sockets are seen: TCP and UDP too go
// by packets, as those of outside do.
func TestPackets(t *testing.T) {
	proxytest.Run(t, proxytest.Subject{Start: byPackets(t, bpf.Config{})})
}

// TestFilters is the same with programs attached as before kernel 6.6. How they are
// does not depend on the protocol.
func TestFilters(t *testing.T) {
	proxytest.Run(t, proxytest.Subject{
		Start:     byPackets(t, bpf.Config{Clsact: true}),
		Protocols: []service.Protocol{service.TCP},
	})
}

func byPackets(t *testing.T, config bpf.Config) func(context.Context, string) (proxy.Backend, error) {
	t.Helper()
	config.Root, config.CgroupRoot = filepath.Join(t.TempDir(), "bpf"), cgroup.NewT(t).Path
	return func(context.Context, string) (proxy.Backend, error) {
		b, err := bpf.New(config)
		if err == nil {
			t.Cleanup(func() {
				if err := b.Cleanup(context.Background()); err != nil {
					t.Error(err)
				}
			})
		}
		return b, err
	}
}
