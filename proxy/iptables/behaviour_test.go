package iptables_test

import (
	"context"
	"testing"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/iptables"
	"github.com/fairlead/fairlead/proxy/proxytest"
)

func TestBehaviour(t *testing.T) {
	for _, variant := range []string{"legacy", "nft"} {
		t.Run(variant, func(t *testing.T) {
			proxytest.Run(t, proxytest.Subject{Start: func(context.Context, string) (proxy.Backend, error) {
				return iptables.New(iptables.Config{Variant: variant, MasqueradeMark: 0x4000})
			}})
		})
	}
}
