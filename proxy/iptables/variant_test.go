package iptables

import (
	"strings"
	"testing"

	"github.com/fairlead/fairlead/e2e/netns"
)

// A proxy that brings both variants uses that of the node's other programs.
func TestHostVariant(t *testing.T) {
	tests := map[string]struct {
		rules []string // commands
		want  string
	}{
		"nothing":              {nil, NFT},
		"legacy rules":         {[]string{"iptables-legacy -A INPUT -j ACCEPT"}, Legacy},
		"more legacy rules":    {[]string{"iptables-nft -A INPUT -j ACCEPT", "iptables-legacy -A INPUT -j ACCEPT", "iptables-legacy -A OUTPUT -j ACCEPT"}, Legacy},
		"kubelet says nft":     {[]string{"iptables-nft -t mangle -N KUBE-IPTABLES-HINT", "iptables-legacy -A INPUT -j ACCEPT"}, NFT},
		"kubelet says legacy":  {[]string{"iptables-legacy -t mangle -N KUBE-IPTABLES-HINT", "iptables-nft -A INPUT -j ACCEPT"}, Legacy},
		"an older kubelet too": {[]string{"iptables-legacy -t mangle -N KUBE-KUBELET-CANARY", "iptables-nft -A INPUT -j ACCEPT"}, Legacy},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ns := netns.NewT(t)
			for _, command := range tt.rules {
				words := strings.Fields(command)
				ns.RunT(t, words[0], words[1:]...)
			}
			var got string
			err := ns.Do(func() (err error) {
				got, err = HostVariant(t.Context())
				return err
			})
			if err != nil || got != tt.want {
				t.Errorf("got %q, %v; want %s", got, err, tt.want)
			}
		})
	}
}

// What is left of ours is found in each variant, and to look leaves no tables behind.
func TestLeft(t *testing.T) {
	for _, variant := range []string{Legacy, NFT} {
		for command, want := range map[string]bool{
			"iptables-" + variant + " -t nat -N FAIRLEAD-X":   true,
			"ip6tables-" + variant + " -t nat -N FAIRLEAD-X":  true,
			"iptables-" + variant + " -t nat -N NO-FAIRLEAD-": false,
			"true": false,
		} {
			t.Run(variant+"/"+command, func(t *testing.T) {
				ns := netns.NewT(t)
				words := strings.Fields(command)
				ns.RunT(t, words[0], words[1:]...)
				var got bool
				err := ns.Do(func() (err error) {
					got, err = Left(t.Context(), variant)
					return err
				})
				if err != nil || got != want {
					t.Errorf("got %v, %v; want %v", got, err, want)
				}
				if command == "true" {
					if tables := ns.RunT(t, "cat", "/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"); len(tables) > 0 {
						t.Errorf("tables are there now: %s", tables)
					}
				}
			})
		}
	}
}
