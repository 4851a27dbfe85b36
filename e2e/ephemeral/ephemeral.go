// Package ephemeral gives the test clients of this process their source ports.
//
// The kernel chooses UDP ports at random, so that among two hundred flows two
// have the same one as a rule. Conntrack remembers a finished flow for some time
// and leads a new one with the same ports to the same backend, whatever the round
// robin says: the second flow would count as none. Here a port comes back only
// after all others had their turn.
package ephemeral

import (
	"math/rand/v2"
	"sync/atomic"
)

// Linux's default of net.ipv4.ip_local_port_range.
const (
	first = 32768
	last  = 60999

	// Count is how often Port can be called before a port comes back.
	Count = last - first + 1
)

// Port is the next port. It may be in use by somebody else: then ask again.
func Port() uint16 {
	return first + uint16((start+given.Add(1))%Count)
}

var (
	// start is random, so that two processes in one namespace rarely meet.
	start = rand.Uint32N(Count)
	given atomic.Uint32
)
