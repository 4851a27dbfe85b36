package bpf_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/fairlead/fairlead/e2e/bpffs"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/bpf"
	"github.com/fairlead/fairlead/proxy/proxytest"
)

func TestMain(m *testing.M) { bpffs.Main(m) }

func TestBehaviour(t *testing.T) {
	root := filepath.Join(t.TempDir(), "bpf")
	proxytest.Run(t, proxytest.Subject{
		Sockets: true,
		Start: func(_ context.Context, cgroup string) (proxy.Backend, error) {
			b, err := bpf.New(bpf.Config{Root: root, CgroupRoot: cgroup})
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
