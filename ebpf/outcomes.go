package ebpf

import (
	"fmt"
)

// Outcome is how a program ends with a socket or a packet.
type Outcome struct {
	Path string // "socket" or "packet"
	Name string // in metrics
	Text string // for people
	// Trouble: somebody gets no answer and is not told why.
	Trouble bool
}

const (
	socketPath = "socket"
	packetPath = "packet"
)

// outcomes are enum outcome of c/types.h, whose trouble is_trouble knows too.
var outcomes = [bpfOutcomeOUTCOMES]Outcome{
	bpfOutcomeSOCK_PASSED:    {socketPath, "passed", "no Service's", false},
	bpfOutcomeSOCK_FORWARDED: {socketPath, "forwarded", "to the endpoint in turn", false},
	bpfOutcomeSOCK_KEPT:      {socketPath, "kept", "to the endpoint that the sender had, by affinity", false},
	bpfOutcomeSOCK_SENT:      {socketPath, "sent", "a datagram to the endpoint of those before", false},
	bpfOutcomeSOCK_REFUSED:   {socketPath, "refused", "no endpoint: refused", false},
	bpfOutcomeSOCK_LEFT:      {socketPath, "left", "left to the packet path", false},
	bpfOutcomeSOCK_LOST:      {socketPath, "lost", "no endpoint is in the maps: refused", true},

	bpfOutcomePACKET_PASSED:        {packetPath, "passed", "no Service's", false},
	bpfOutcomePACKET_BEGUN:         {packetPath, "begun", "to the endpoint in turn", false},
	bpfOutcomePACKET_KEPT:          {packetPath, "kept", "to the endpoint that the sender had, by affinity", false},
	bpfOutcomePACKET_FORWARDED:     {packetPath, "forwarded", "to the endpoint of its flow", false},
	bpfOutcomePACKET_REPLIED:       {packetPath, "replied", "from an endpoint to who had asked", false},
	bpfOutcomePACKET_ERROR:         {packetPath, "error", "an ICMP error about a translated packet", false},
	bpfOutcomePACKET_REFUSED:       {packetPath, "refused", "no endpoint: the sender was told", false},
	bpfOutcomePACKET_RESET:         {packetPath, "reset", "its endpoint is gone: the sender was told", false},
	bpfOutcomePACKET_DROPPED:       {packetPath, "dropped", "dropped: no endpoint on this node, as the traffic policy wants it", true},
	bpfOutcomePACKET_NOT_ADMITTED:  {packetPath, "not_admitted", "dropped: the sender is in none of the source ranges", true},
	bpfOutcomePACKET_UNREACHABLE:   {packetPath, "unreachable", "no route to the endpoint: the sender was told", false},
	bpfOutcomePACKET_TOO_BIG:       {packetPath, "too_big", "too big for the way to the endpoint: the sender was told", false},
	bpfOutcomePACKET_EXPIRED:       {packetPath, "expired", "no hops left: the sender was told", false},
	bpfOutcomePACKET_MUTE:          {packetPath, "mute", "dropped: the sender was to be told, which cannot be done for such a packet", true},
	bpfOutcomePACKET_MALFORMED:     {packetPath, "malformed", "headers that contradict themselves: left to the kernel", false},
	bpfOutcomePACKET_SCTP_FRAGMENT: {packetPath, "sctp_fragment", "dropped: the SCTP checksum of a fragment cannot be mended", true},
	bpfOutcomePACKET_LOST:          {packetPath, "lost", "dropped: no endpoint is in the maps", true},
	bpfOutcomePACKET_NO_PORT:       {packetPath, "no_port", "dropped: no port, or no address, to masquerade with is left", true},
	bpfOutcomePACKET_NO_MEMORY:     {packetPath, "no_memory", "dropped: no memory", true},
}

// Count is how many sockets or packets ended so since the maps were made.
type Count struct {
	Outcome
	Count uint64
}

// Outcomes counts all, over all processors.
func (d *DataPath) Outcomes() ([]Count, error) {
	all := make([]Count, len(outcomes))
	for i, o := range outcomes {
		all[i].Outcome = o
		var each []bpfTally
		if err := d.Maps.Outcomes.Lookup(uint32(i), &each); err != nil {
			return nil, fmt.Errorf("read %s: %w", d.Maps.Outcomes, err)
		}
		for _, t := range each {
			all[i].Count += t.Count
		}
	}
	return all, nil
}
