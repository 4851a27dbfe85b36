package iptables

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/nftnews"
)

// sighting is what others have done to a family's rules, as far as that is seen
// without reading them.
type sighting int

const (
	nothing  sighting = iota
	touched           // tables that we have rules in: those may be gone
	tampered          // our chains, or there are fewer rules than there were
)

// witness sees what others do.
type witness interface {
	// sight is what was seen since it was asked before.
	sight() sighting
	// writes: the process of that number is about to write for us.
	writes(pid int)
	// wrote: it has ended, or never began.
	wrote()
}

// Watch has Intact see at once what others do to our rules, until ctx ends. Without it
// that is looked for now and then. It listens in the network namespace of the calling
// thread.
func (b *Backend) Watch(ctx context.Context) error {
	var listeners []*listener
	for _, f := range b.families {
		if f.nft {
			l := &listener{ipv6: f.ipv6}
			listeners, f.witness = append(listeners, l), l
			continue
		}
		var err error
		if f.witness, err = newCensus(ctx, f.ipv6); err != nil {
			return err
		}
	}
	if len(listeners) == 0 {
		return nil
	}
	_, err := nftnews.Listen(ctx, func(e nftnews.Event) bool {
		for _, l := range listeners {
			l.hear(e)
		}
		return false // who wants to know asks by sight
	})
	if err != nil {
		for _, f := range b.families {
			f.witness = nil
		}
	}
	return err
}

// listener is told by nf_tables of each change and who made it.
type listener struct {
	ipv6 bool

	mu      sync.Mutex // guards what follows
	seen    sighting
	writers [32]uint32 // the latest that write for us: their ports, which are their numbers
	next    int        // in writers
}

func (l *listener) sight() sighting {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen := l.seen
	l.seen = nothing
	return seen
}

func (l *listener) writes(pid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writers[l.next%len(l.writers)] = uint32(pid)
	l.next++
}

func (l *listener) wrote() {}

func (l *listener) hear(e nftnews.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	family := uint8(unix.NFPROTO_IPV4)
	if l.ipv6 {
		family = unix.NFPROTO_IPV6
	}
	switch {
	case e.Lost: // it may have been of our chains
		l.seen = tampered
	case e.Family != family || e.Table != filter && e.Table != nat || slices.Contains(l.writers[:], e.By):
	case ours(e.Chain):
		l.seen = tampered
	case slices.Contains([]uint16{unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE}, e.Kind):
		l.seen = max(l.seen, touched)
	}
}

// census counts. Of ip_tables the kernel tells nothing, but to ask how many rules a
// table has, and where each hook's begin, costs a microsecond. What takes away as many
// bytes as it adds is not seen by it. It is for families that we have rules in: to ask for
// a table makes it (see package xtables).
type census struct {
	socket int
	level  int                  // of the socket option
	known  map[string]tableInfo // of each table, as of the last sight or what we wrote since
}

func newCensus(ctx context.Context, ipv6 bool) (*census, error) {
	c := &census{level: unix.SOL_IP}
	family := unix.AF_INET
	if ipv6 {
		c.level, family = unix.SOL_IPV6, unix.AF_INET6
	}
	var err error
	if c.socket, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
		return nil, fmt.Errorf("open a socket to ask for tables of iptables: %w", err)
	}
	context.AfterFunc(ctx, func() { _ = unix.Close(c.socket) })
	return c, nil
}

func (c *census) sight() sighting {
	seen := nothing
	now := c.count()
	for table, before := range c.known {
		switch {
		case now[table].Entries < before.Entries:
			seen = tampered
		case now[table] != before:
			seen = max(seen, touched)
		}
	}
	c.known = now
	return seen
}

func (c *census) writes(int) {}

func (c *census) wrote() { c.known = c.count() }

// tableInfo is struct ipt_getinfo of linux/netfilter_ipv4/ip_tables.h, and
// ip6t_getinfo.
type tableInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32
	Entries    uint32
	Size       uint32
}

// count asks for both tables. A table that is not there has the zero value.
func (c *census) count() map[string]tableInfo {
	const getInfo = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	all := map[string]tableInfo{}
	for _, table := range []string{filter, nat} {
		info := tableInfo{}
		copy(info.Name[:], table)
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(c.socket), uintptr(c.level), getInfo,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			info = tableInfo{}
		}
		all[table] = info
	}
	return all
}
