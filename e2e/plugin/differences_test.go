package plugin

import "regexp"

// difference is one between the reference and Fairlead that is wanted.
type difference struct {
	facts   *regexp.Regexp // of lines "fact: by the reference -> by Fairlead"
	because string
}

// reason is why a fact differs, "" if it must not.
func (c comparison) reason(fact, reference, fairlead string) string {
	line := fact + ": " + reference + " -> " + fairlead
	for _, d := range append(c.wanted, everywhere...) {
		if d.facts.MatchString(line) {
			return d.because
		}
	}
	return ""
}

func differs(facts, because string) difference {
	return difference{regexp.MustCompile("^(?:" + facts + ")$"), because}
}

// everywhere are the differences that any row may have.
var everywhere = []difference{
	differs(`result interfaces \d mtu:  -> \d+`,
		"the specification has the MTU in results since 1.1"),
	differs(`(host link <port>|pod link eth0) num_[rt]x_queues: \d+ -> 1`,
		"a queue for every processor takes time to make, and a veth gains nothing by it"),
	differs(`host link <port> txqlen:  -> 1000`,
		"no queue is the reference's work-around for kernels before 4.3; the port has noqueue all the same"),
	differs(`(host link <port>|pod link eth0) group: default -> -?\d+`,
		"GC and DEL know the interfaces of a network by their group"),
	differs(`host sysctl net/ipv6/conf/<port>/accept_ra: 0 -> 1`,
		"what comes in by a port is the bridge's, not the port's"),
	differs(`(host link <port> address|result interfaces 1 mac): <of \S+ of the host> -> <of <port> of the host>`+
		`|after DEL: host link \S+ address: 00:00:00:00:00:00 -> <of \S+ of the host>`,
		"the hardware address of a bridge is pinned, and does not follow the first port's"),
}

// Differences of some rows.
var (
	noDAD = differs(`((after DEL: )?host link \S+|pod link eth0) addr_info \d (nodad:  -> true|tentative: true -> )`+
		`|(after DEL: )?host route (anycast|local) fd09:.* table local .*:  -> there`,
		"IPAM knows that its addresses are unique, and duplicate address detection takes a second")
	noDADOfItsOwn = differs(`pod sysctl net/ipv6/conf/eth0/accept_dad: 1 -> 0`,
		"the link-local address, from a hardware address of 46 random bits, is there at once too")
	announcesIPv6 = differs(`pod sysctl net/ipv6/conf/eth0/ndisc_notify: 0 -> 1`,
		"neighbours are told of IPv6 addresses as they are of IPv4 addresses")
	announcesNothing = differs(`pod sysctl net/ipv6/conf/eth0/ndisc_notify: 1 -> 0`,
		"IPAM gave no IPv6 address that could be announced")
	obeysRoutes = differs(`pod route 10.8.0.0/16 via 10.9.0.7 .* metric 7( mtu 1300 advmss 1200:  -> there|: there -> )`,
		"the reference reports the mtu and advmss of a route, and does not give them to the kernel")
	obeysMAC = differs(`(host link eth0 address|pod link eth0 address|result interfaces 0 mac): <of eth0 of the host> -> 02:aa:00:00:00:01`,
		"the reference passes over mac in mode passthru, as the kernel does when it makes the interface")
)
