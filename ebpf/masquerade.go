package ebpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// syncAddrs tells the programs which address of the node masqueraded packets get:
// that of the link by which they leave, the one that the kernel itself would choose
// first; where that has none, that of the default route.
func (s *links) syncAddrs() error {
	addrs, err := s.kernel.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	routes, err := s.kernel.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_DST)
	if err != nil {
		return fmt.Errorf("list default routes: %w", err)
	}
	want := masqueradeRows(addrs, routes)
	var key bpfMasqueradeKey
	var row, gone = Addr{}, []bpfMasqueradeKey(nil)
	rows := s.addrs.Iterate()
	for rows.Next(&key, &row) {
		if _, ok := want[key]; !ok {
			gone = append(gone, key)
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read %s: %w", s.addrs, err)
	}
	for key, row := range want {
		if err := s.addrs.Put(key, row); err != nil {
			return fmt.Errorf("write to %s: %w", s.addrs, err)
		}
	}
	for _, key := range gone {
		if err := s.addrs.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove from %s: %w", s.addrs, err)
		}
	}
	return nil
}

// masqueradeRows are the rows of masquerade_addrs; those with index 0 are of the
// default route, the best one of each family, or without one of any link.
func masqueradeRows(addrs []netlink.Addr, defaults []netlink.Route) map[bpfMasqueradeKey]Addr {
	rows := map[bpfMasqueradeKey]Addr{}
	for _, a := range addrs {
		addr, ok := netip.AddrFromSlice(a.IP)
		addr = addr.Unmap()
		if !ok || a.Flags&unusable != 0 || a.Scope != unix.RT_SCOPE_UNIVERSE || addr.IsLinkLocalUnicast() || addr.IsLoopback() {
			continue
		}
		for _, index := range []int{a.LinkIndex, 0} {
			key := masqueradeKey(index, addr.Is6())
			if _, ok := rows[key]; !ok {
				rows[key] = addrRow(addr)
			}
		}
	}
	best := map[bool]netlink.Route{}
	for _, r := range defaults {
		ipv6 := r.Family == netlink.FAMILY_V6
		if b, ok := best[ipv6]; ok && b.Priority <= r.Priority {
			continue
		}
		if _, ok := rows[masqueradeKey(r.LinkIndex, ipv6)]; ok || r.Src != nil {
			best[ipv6] = r
		}
	}
	for ipv6, r := range best {
		row := rows[masqueradeKey(r.LinkIndex, ipv6)]
		if src, ok := netip.AddrFromSlice(r.Src); ok {
			row = addrRow(src)
		}
		rows[masqueradeKey(0, ipv6)] = row
	}
	return rows
}

// unusable are the flags of addresses that are not the first choice, or none.
const unusable = unix.IFA_F_SECONDARY | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_DEPRECATED

func masqueradeKey(index int, ipv6 bool) bpfMasqueradeKey {
	key := bpfMasqueradeKey{Ifindex: uint32(index)}
	if ipv6 {
		key.V6 = 1
	}
	return key
}

// addrRow is an address as the maps have it.
func addrRow(a netip.Addr) Addr {
	var row Addr
	b := a.As16()
	for i := range row.W {
		row.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return row
}

// masqueradePorts are ports that neither the node's own sockets get from the
// kernel, in the network namespace of the calling thread, nor Services as node
// ports.
func masqueradePorts() (bpfPortRange, error) {
	const file = "/proc/sys/net/ipv4/ip_local_port_range"
	text, err := os.ReadFile(file)
	if err != nil {
		return bpfPortRange{}, err
	}
	var first, last int
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil {
		return bpfPortRange{}, fmt.Errorf("read %s: %w", file, err)
	}
	const lowest, nodePorts, highest = 1024, 30000, 65535
	below, above := min(first, nodePorts)-lowest, highest-last
	if below >= above {
		return bpfPortRange{First: lowest, Count: uint16(max(below, 1))}, nil
	}
	return bpfPortRange{First: uint16(last + 1), Count: uint16(above)}, nil
}
