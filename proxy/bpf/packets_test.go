package bpf_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/e2e/cgroup"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/proxytest"
)

// TestPackets has nobody in the cgroup whose sockets are seen: TCP and UDP too go
// by packets, as those of outside do.
func TestPackets(t *testing.T) {
	nobody := cgroup.NewT(t)
	root := filepath.Join(t.TempDir(), "bpf")
	proxytest.Run(t, proxytest.Subject{
		Start: func(context.Context, string) (proxy.Backend, error) {
			b, err := bpf.New(bpf.Config{Root: root, CgroupRoot: nobody.Path})
			if err == nil {
				t.Cleanup(func() {
					if err := b.Cleanup(context.Background()); err != nil {
						t.Error(err)
					}
				})
			}
			return b, err
		},
	})
}
