package main

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// FuzzKubeProxyConfig reads what was to be kube-proxy's configuration file. It is taken,
// or refused as a mistake of the user's, with the name of the file.
func FuzzKubeProxyConfig(f *testing.F) {
	text, err := os.ReadFile(kubeadm)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	for _, text := range []string{
		"clusterCIDR: 10.0.0.0/8,fd00::/48\niptables: {masqueradeAll: true, masqueradeBit: 5}",
		"nodePortAddresses: [localhost, 10.0.0.0/8]\niptables: {localhostNodePorts: true}",
		"detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\nmode: nftables",
		"conntrack: {udpTimeout: 5s, maxPerCore: 0}\noomScoreAdj: -999\nhealthzBindAddress: '[::]:1'",
	} {
		f.Add(header + text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, s, err := settingsOf(t, text)
		if err == nil {
			if s.service.ClusterCIDRs != nil && len(s.service.ClusterCIDRs) == 0 {
				t.Error("ranges without a range")
			}
			return
		}
		if usage := (usageError{}); !errors.As(err, &usage) || !strings.HasPrefix(err.Error(), "--config config.conf: ") {
			t.Errorf("error %q", err)
		}
	})
}
