package cni_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// TestStatus has what an ADD would need missing, one thing after the other.
func TestStatus(t *testing.T) {
	tests := map[string]struct {
		prepare  func(t *testing.T, node *node, conf network) network
		wantCode uint
		want     string // part of the error; "": none
	}{
		"a fresh node": {},
		"a node with pods": {prepare: func(t *testing.T, node *node, conf network) network {
			conf = conf.withIPAM("ranges", [][]network{{{"subnet": "10.9.0.0/24"}}})
			node.addT(t, newPod(t, "pod"), conf)
			return conf
		}},
		"the pool is exhausted": {
			prepare: func(t *testing.T, node *node, conf network) network {
				node.addT(t, newPod(t, "pod"), conf)
				return conf
			},
			wantCode: types.ErrPluginNotAvailable, want: "no addresses left in 10.9.0.9-10.9.0.9",
		},
		"the bridge is something else": {
			prepare: func(t *testing.T, node *node, conf network) network {
				node.ns.RunT(t, "ip", "link", "add", "cni0", "type", "veth")
				return conf
			},
			wantCode: types.ErrPluginNotAvailable, want: "bridge: interface cni0 is a veth, not a bridge",
		},
		"the store is unreadable": {
			prepare: func(t *testing.T, node *node, conf network) network {
				node.addT(t, newPod(t, "pod"), conf)
				files, err := filepath.Glob(filepath.Join(conf["ipam"].(network)["dataDir"].(string), "*"))
				if err != nil || len(files) == 0 {
					t.Fatal(files, err)
				}
				for _, file := range files {
					if err := os.WriteFile(file, []byte("not a store"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				return conf
			},
			wantCode: types.ErrPluginNotAvailable, want: "net.db: it is damaged",
		},
		"another IPAM plugin is not ready": {
			prepare: func(t *testing.T, node *node, conf network) network {
				node.path = t.TempDir()
				script := "#!/bin/sh\ntest $CNI_COMMAND = STATUS || exit 2\necho '{\"code\": 51, \"msg\": \"tired\"}'\nexit 1\n"
				if err := os.WriteFile(filepath.Join(node.path, "ipam-of-test"), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
				return conf.with("ipam", network{"type": "ipam-of-test"})
			},
			wantCode: types.ErrLimitedConnectivity, want: "IPAM plugin ipam-of-test: STATUS: tired",
		},
		"a configuration that ADD refuses": {
			prepare:  func(_ *testing.T, _ *node, conf network) network { return conf.with("mtu", 1) },
			wantCode: types.ErrInvalidNetworkConfig, want: "mtu: 1 is out of range: 0 (the kernel's default) or 68 to 65535 is allowed",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			node, conf := newNode(t), onlyAddress(t)
			if tt.prepare != nil {
				conf = tt.prepare(t, node, conf)
			}
			before := dump(t, node.ns)
			_, err := node.call(node, "STATUS", pod{}, marshal(conf))
			if (err == nil) != (tt.want == "") || !strings.Contains(text(err), tt.want) || code(err) != tt.wantCode {
				t.Errorf("code %d, error %v; want %d, %s", code(err), err, tt.wantCode, tt.want)
			}
			compare(t, "host", before, dump(t, node.ns))
		})
	}
}
