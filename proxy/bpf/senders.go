package bpf

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"slices"

	"github.com/fairlead/fairlead/cni/host/namespaces"
	"github.com/fairlead/fairlead/proxy/service"
)

// Path says how flows that begin with p are led to a frontend: "socket" by the socket
// of the sender, which gets its backend at once, so that no packet is translated, or
// "packet". unsure says why it is not known whether the sender has a socket that is led;
// the path is then that of others. class is what the Table takes the sender for. routed:
// it is behind a router. It is safe for concurrent use.
//
// SCTP has no hooks, and whether the address that a socket is yet to get is an allowed
// source only its packets tell.
func (b *Backend) Path(f service.Frontend, p service.Packet, class service.Class, routed bool) (path string, unsure error) {
	if p.Protocol == service.SCTP || len(f.Sources) > 0 {
		return "packet", nil
	}
	if class == service.FromNode {
		return "socket", nil
	}
	leads, unsure := b.leads(p.Src.Unmap())
	if leads {
		return "socket", nil
	}
	if unsure == nil && class == service.FromPod && !routed {
		unsure = errors.New("no network namespace of this node has that address now")
	}
	return "packet", unsure
}

// leads says whether sockets that have an address, which is none of the node's own, are
// led. The error says why there may be some that are not to be seen.
func (b *Backend) leads(addr netip.Addr) (bool, error) {
	all, hidden := namespaces.All()
	for _, n := range all {
		addrs, err := namespaces.Addrs(n.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && hidden == nil {
			hidden = err
		}
		if slices.Contains(addrs, addr) && b.path.Leads(n.Processes) {
			return true, nil
		}
	}
	return false, hidden
}

// openNamespaces opens the network namespaces of this machine, one after the other. In a
// container, where processes of others are not to be seen, these are the ones that
// container runtimes bind to files.
func openNamespaces(yield func(fd int) bool) {
	all, _ := namespaces.All()
	for _, n := range all {
		file, err := os.Open(n.Path)
		if err != nil {
			continue // it has gone
		}
		more := yield(int(file.Fd()))
		_ = file.Close()
		if !more {
			return
		}
	}
}
