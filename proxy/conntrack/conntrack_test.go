package conntrack

import (
	"net/netip"
	"testing"

	"github.com/fairlead/fairlead/proxy/service"
)

func TestStale(t *testing.T) {
	key := func(s string) service.Key {
		ap := netip.MustParseAddrPort(s)
		return service.Key{Addr: ap.Addr(), Port: ap.Port(), Protocol: service.UDP}
	}
	id := service.PoolID{Origin: service.Origin{Service: service.Name{Namespace: "default", Name: "dns"}}}
	to := service.Path{Verdict: service.Forward, Pool: id}
	refuse := service.Path{Verdict: service.Reject}
	f := filter{
		table: &service.Table{
			Frontends: map[service.Key]service.Frontend{
				key("10.96.0.10:53"): {Paths: service.Paths{to, to, to}},
				key("10.96.0.11:53"): {Paths: service.Paths{refuse, refuse, refuse}},
				key("0.0.0.0:30053"): {Paths: service.Paths{to, to, to}},
			},
			Pools: map[service.PoolID]service.Pool{id: {Protocol: service.UDP,
				Backends: []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:53")},
				Serving:  []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:53"), netip.MustParseAddrPort("10.244.1.9:53")}}},
			NodeAddrs:     []netip.Addr{netip.MustParseAddr("192.168.0.1")},
			NodePortCIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.1/32")},
		},
		gone: map[service.Key]bool{key("10.96.0.12:53"): true, key("0.0.0.0:30054"): true},
	}
	tests := []struct {
		name, to, answers string
		want              bool
	}{
		{"led to a backend", "10.96.0.10:53", "10.244.1.2:53", false},
		{"led to a former backend", "10.96.0.10:53", "10.244.1.3:53", true},
		{"led to another port of a backend", "10.96.0.10:53", "10.244.1.2:54", true},
		{"began before the Service", "10.96.0.10:53", "10.96.0.10:53", true},
		{"Service has no endpoint any more", "10.96.0.11:53", "10.244.1.2:53", true},
		{"node port, led to a backend", "192.168.0.1:30053", "10.244.1.2:53", false},
		{"node port, led to a former backend", "192.168.0.1:30053", "10.244.1.3:53", true},
		{"led to an endpoint that serves but gets no new flows", "10.96.0.10:53", "10.244.1.9:53", false},
		{"node port is gone", "192.168.0.1:30054", "10.244.1.2:53", true},
		{"Service is gone", "10.96.0.12:53", "10.244.1.2:53", true},
		{"translated by somebody else", "192.168.0.1:99", "172.17.0.2:99", false},
		{"not translated", "10.244.1.2:53", "10.244.1.2:53", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := f.stale(service.UDP, netip.MustParseAddrPort(tt.to), netip.MustParseAddrPort(tt.answers)); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}
