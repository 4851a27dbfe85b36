package bridge

import (
	"encoding/json"
	"net/netip"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
)

func TestCompleteResult(t *testing.T) {
	tests := map[string]struct {
		config Config
		ipam   string // its result
		result string
		want   []string // addresses of the bridge
	}{
		"no gateway": {
			ipam:   `{"ips": [{"address": "10.9.0.5/24"}, {"address": "fd09::5/64", "gateway": "fd09::1"}]}`,
			result: `{"ips": [{"interface": 2, "address": "10.9.0.5/24"}, {"interface": 2, "address": "fd09::5/64", "gateway": "fd09::1"}]}`,
		},
		"IPAM's gateway": {
			config: Config{IsGateway: true},
			ipam:   `{"ips": [{"address": "10.9.0.5/24", "gateway": "10.9.0.254"}]}`,
			result: `{"ips": [{"interface": 2, "address": "10.9.0.5/24", "gateway": "10.9.0.254"}]}`,
			want:   []string{"10.9.0.254/24"},
		},
		"the first address of the subnet": {
			config: Config{IsGateway: true},
			ipam:   `{"ips": [{"address": "10.9.7.5/20"}, {"address": "fd09::1:5/112"}]}`,
			result: `{"ips": [{"interface": 2, "address": "10.9.7.5/20", "gateway": "10.9.0.1"}, {"interface": 2, "address": "fd09::1:5/112", "gateway": "fd09::1:1"}]}`,
			want:   []string{"10.9.0.1/20", "fd09::1:1/112"},
		},
		"one gateway for several addresses": {
			config: Config{IsGateway: true},
			ipam:   `{"ips": [{"address": "10.9.0.5/24"}, {"address": "10.9.0.6/24"}, {"address": "10.8.0.6/24"}]}`,
			result: `{"ips": [{"interface": 2, "address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"interface": 2, "address": "10.9.0.6/24", "gateway": "10.9.0.1"}, {"interface": 2, "address": "10.8.0.6/24", "gateway": "10.8.0.1"}]}`,
			want:   []string{"10.9.0.1/24", "10.8.0.1/24"},
		},
		"one default route for each family": {
			config: Config{IsGateway: true, IsDefaultGateway: true},
			ipam:   `{"ips": [{"address": "10.9.0.5/24"}, {"address": "10.8.0.6/24"}, {"address": "fd09::5/64"}], "routes": [{"dst": "192.0.2.0/24"}]}`,
			result: `{"ips": [{"interface": 2, "address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"interface": 2, "address": "10.8.0.6/24", "gateway": "10.8.0.1"}, {"interface": 2, "address": "fd09::5/64", "gateway": "fd09::1"}],
				"routes": [{"dst": "192.0.2.0/24"}, {"dst": "0.0.0.0/0", "gw": "10.9.0.1"}, {"dst": "::/0", "gw": "fd09::1"}]}`,
			want: []string{"10.9.0.1/24", "10.8.0.1/24", "fd09::1/64"},
		},
		"IPAM's default routes": {
			config: Config{IsGateway: true, IsDefaultGateway: true},
			ipam:   `{"ips": [{"address": "10.9.0.5/24"}, {"address": "fd09::5/64"}], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd09::9"}]}`,
			result: `{"ips": [{"interface": 2, "address": "10.9.0.5/24", "gateway": "10.9.0.1"}, {"interface": 2, "address": "fd09::5/64", "gateway": "fd09::1"}],
				"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd09::9"}]}`,
			want: []string{"10.9.0.1/24", "fd09::1/64"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			result, want := decode(t, tt.ipam), decode(t, tt.result)
			gateways, err := tt.config.completeResult(result)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(encode(t, want), encode(t, result)); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, texts(gateways)); diff != "" {
				t.Errorf("addresses of the bridge (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPortName(t *testing.T) {
	names := map[string]bool{}
	for _, id := range []string{"a", "b", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"} {
		for _, ifName := range []string{"eth0", "eth1"} {
			name := PortName(id, ifName)
			if len(name) != 15 || name != PortName(id, ifName) {
				t.Errorf("container %s, interface %s: %q", id, ifName, name)
			}
			names[name] = true
		}
	}
	if len(names) != 6 {
		t.Errorf("6 attachments have %d names", len(names))
	}
}

func decode(t *testing.T, text string) *types100.Result {
	t.Helper()
	var r types100.Result
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func encode(t *testing.T, r *types100.Result) string {
	t.Helper()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func texts(prefixes []netip.Prefix) []string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return all
}
