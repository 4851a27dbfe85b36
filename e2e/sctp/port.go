package sctp

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/e2e/ephemeral"
)

// onPort takes addr or, if its port is 0, the next ephemeral port that is free.
func onPort[T any](addr netip.AddrPort, take func(netip.AddrPort) (T, error)) (T, error) {
	if addr.Port() != 0 {
		return take(addr)
	}
	for range ephemeral.Count {
		taken, err := take(netip.AddrPortFrom(addr.Addr(), ephemeral.Port()))
		if !errors.Is(err, unix.EADDRINUSE) {
			return taken, err
		}
	}
	var none T
	return none, fmt.Errorf("take an ephemeral port of %s: %w", addr.Addr(), unix.EADDRNOTAVAIL)
}
