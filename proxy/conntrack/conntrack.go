// Package conntrack ends flows that the kernel remembers the wrong way.
//
// Netfilter translates the first packet of a flow and remembers where to. Over
// UDP, whose flows have no end, a client that goes on from the same port is led
// for ever to an endpoint that is long gone, or past a Service that did not exist
// when it began. An SCTP client that starts again from the same port, as some
// must, has the same trouble. So has a TCP client that asked before there was a Service or
// a proxy and has got no answer: the kernel remembers for two minutes that its SYN goes past
// the Service, also when another connection has that port. Else a TCP client notices by
// itself; but where its Service wants a connection to be reset, its next segment, which belongs to no flow then, is
// led to an endpoint that knows nothing of it and resets it (for that
// nf_conntrack_tcp_loose has to be 1, as it is by default), or is rejected.
//
// Flows to an endpoint that still serves go on, also when it gets no new ones.
//
// It is used by backends that translate with netfilter. stale is pure: Table and
// flow in, verdict out.
//
// When a node changes from a backend that translates with netfilter to one that does
// not, or back, flows go on: what the one knows of them the other is told (Translated,
// Insert).
package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/proxy/service"
)

// Clean deletes the stale flows of one family in the network namespace of the
// calling thread. t is what the kernel has been told, gone are the destinations
// that were in the Table before and are no more. It returns how many there were.
//
// When many flows come and go the kernel's list of them is now and then not
// complete (NLM_F_DUMP_INTR); what is not in it is left to the next Clean.
func Clean(t *service.Table, ipv6 bool, gone map[service.Key]bool) (int, error) {
	family := netlink.InetFamily(unix.AF_INET)
	if ipv6 {
		family = unix.AF_INET6
	}
	ended, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter{t, gone})
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return int(ended), fmt.Errorf("delete stale flows: %w", err)
	}
	return int(ended), nil
}

// Concerns says whether a change of the Table can have made flows of a family
// stale.
func Concerns(t *service.Table, change service.Change, ipv6 bool) bool {
	return slices.ContainsFunc(change.Frontends, func(k service.Key) bool { return k.Addr.Is6() == ipv6 && lasts(k.Protocol) }) ||
		slices.ContainsFunc(change.Pools, func(id service.PoolID) bool {
			pool, ok := t.Pools[id]
			return ok && id.IPv6 == ipv6 && (lasts(pool.Protocol) || pool.Reset)
		})
}

// lasts says of which protocols stale flows are looked for.
func lasts(p service.Protocol) bool { return p == service.UDP || p == service.SCTP }

// filter picks the stale flows of a dump.
type filter struct {
	table *service.Table
	gone  map[service.Key]bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	protocol := service.Protocol(flow.Forward.Protocol)
	to := addrPort(flow.Forward.DstIP, flow.Forward.DstPort)
	if !lasts(protocol) && !unanswered(flow) && !f.table.Resets(to, protocol) {
		return false
	}
	answers := addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	return f.stale(protocol, to, answers)
}

// synSent is TCP_CONNTRACK_SYN_SENT of linux/netfilter/nf_conntrack_tcp.h.
const synSent = 1

// unanswered says whether a flow is a TCP connection that has not come about yet. Without
// the flow the client's next SYN begins it anew.
func unanswered(flow *netlink.ConntrackFlow) bool {
	tcp, ok := flow.ProtoInfo.(*netlink.ProtoInfoTCP)
	return ok && tcp.State == synSent
}

// stale says whether a flow to a destination should not be answered by whom it
// is.
func (f filter) stale(protocol service.Protocol, to, answers netip.AddrPort) bool {
	if _, ok := f.table.Frontend(to, protocol); !ok {
		translated := to != answers
		return translated && slices.ContainsFunc(f.table.Keys(to, protocol), func(k service.Key) bool { return f.gone[k] })
	}
	return !f.table.Serves(to, protocol, answers)
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
