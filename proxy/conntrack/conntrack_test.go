package conntrack

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
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

// A client that asked before there was a Service, and has got no answer, is led to an
// endpoint when it sends its SYN again. Connections that have come about are left.
func TestCleanUnanswered(t *testing.T) {
	ns := netns.NewT(t)
	for port, flow := range map[string][2]string{
		"1001": {"SYN_SENT", "10.96.0.10"},
		"1002": {"ESTABLISHED", "10.96.0.10"},
		"1003": {"SYN_SENT", "10.244.1.2"},
	} {
		ns.RunT(t, "conntrack", "-I", "-p", "tcp", "--state", flow[0], "-t", "100", "-s", "10.244.1.7", "-d", "10.96.0.10", "--sport", port, "--dport", "80",
			"--reply-src", flow[1], "--reply-dst", "10.244.1.7", "--reply-port-src", "80", "--reply-port-dst", port)
	}
	id := service.PoolID{Origin: service.Origin{Service: service.Name{Namespace: "default", Name: "web"}}}
	to, at := service.Path{Verdict: service.Forward, Pool: id}, []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:80")}
	table := &service.Table{
		Frontends: map[service.Key]service.Frontend{
			{Addr: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: service.TCP}: {Paths: service.Paths{to, to, to}},
		},
		Pools: map[service.PoolID]service.Pool{id: {Protocol: service.TCP, Backends: at, Serving: at}},
	}
	var ended int
	err := ns.Do(func() (err error) {
		ended, err = Clean(table, false, nil)
		return err
	})
	left := ns.RunT(t, "conntrack", "-L")
	if err != nil || ended != 1 || strings.Contains(left, "sport=1001") {
		t.Errorf("%v, %d ended, left:\n%s", err, ended, left)
	}
}
