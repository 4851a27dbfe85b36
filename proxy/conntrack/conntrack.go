// Package conntrack ends flows that the kernel remembers the wrong way.
//
// Netfilter translates the first packet of a flow and remembers where to. Over
// UDP, whose flows have no end, a client that goes on from the same port is led
// for ever to an endpoint that is long gone, or past a Service that did not exist
// when it began. (A TCP client notices, and its connection to an endpoint that is
// merely leaving should go on; that of SCTP too.)
//
// It is used by backends that translate with netfilter. stale is pure: Table and
// flow in, verdict out.
package conntrack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/proxy/service"
)

// Clean deletes the stale flows of one family in the network namespace of the
// calling thread, and says how many there were. t is what the kernel has been
// told, gone are the destinations that were in the Table before and are no more.
func Clean(t *service.Table, ipv6 bool, gone []service.Key) (int, error) {
	family := netlink.InetFamily(unix.AF_INET)
	if ipv6 {
		family = unix.AF_INET6
	}
	deleted, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter{t, gone})
	if err != nil {
		return int(deleted), fmt.Errorf("delete stale flows: %w", err)
	}
	return int(deleted), nil
}

// Concerns says whether a change of the Table can have made flows stale.
func Concerns(t *service.Table, change service.Change) bool {
	return slices.ContainsFunc(change.Frontends, func(k service.Key) bool { return k.Protocol == service.UDP }) ||
		slices.ContainsFunc(change.Pools, func(id service.PoolID) bool {
			pool, ok := t.Pools[id]
			return ok && pool.Protocol == service.UDP
		})
}

// filter picks the stale flows of a dump.
type filter struct {
	table *service.Table
	gone  []service.Key
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if service.Protocol(flow.Forward.Protocol) != service.UDP {
		return false
	}
	to := addrPort(flow.Forward.DstIP, flow.Forward.DstPort)
	answers := addrPort(flow.Reverse.SrcIP, flow.Reverse.SrcPort)
	return f.stale(to, answers)
}

// stale says whether a UDP flow to a destination should not be answered by whom
// it is.
func (f filter) stale(to, answers netip.AddrPort) bool {
	frontend, ok := f.table.Frontend(to, service.UDP)
	if !ok {
		translated := to != answers
		return translated && slices.Contains(f.gone, service.Key{Addr: to.Addr(), Port: to.Port(), Protocol: service.UDP})
	}
	for _, path := range frontend.Paths {
		if path.Verdict == service.Forward && slices.Contains(f.table.Pools[path.Pool].Backends, answers) {
			return false
		}
	}
	return true
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(addr.Unmap(), port)
}
