package node

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// newsGroups are what the kernel tells of: whatever could change what is ours or
// the underlay.
var newsGroups = []uint{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
}

// News is what the kernel said.
type News struct {
	messages []syscall.NetlinkMessage
	// err is set if news cannot be received, or were more than there is room for.
	err error
}

// News tells that something happened, what by Note. It is closed when no more
// news can be received.
func (k *Kernel) News() <-chan News { return k.passed }

// passNews receives until Close.
func (k *Kernel) passNews() {
	defer close(k.passed)
	for {
		messages, _, err := k.news.Receive()
		// ENOBUFS: the buffer was full and some are lost, the socket goes on.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		select {
		case k.passed <- News{messages, err}:
		case <-k.done:
			return
		}
	}
}

// Note takes news in, and reports whether the kernel may now differ from what the
// last Sync was to bring. News of what Sync itself did change nothing. They may
// come late and tell of what has changed again since; then a write is repeated,
// and the news of that one is true.
func (k *Kernel) Note(n News) bool {
	if n.err != nil {
		k.known = false
	}
	if !k.known {
		return true
	}
	changed := false
	for _, m := range n.messages {
		changed = k.note(m.Header.Type, m.Data) || changed
	}
	if changed {
		k.agreed, k.last = false, nil
	}
	return changed
}

// note takes in one message and reports whether it was something new.
func (k *Kernel) note(kind uint16, m []byte) bool {
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, ok := parseRoute(m)
		return ok && k.noteRoute(r, kind == unix.RTM_NEWROUTE)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, ok := parseNeighbour(m)
		return ok && k.noteNeighbour(n, kind == unix.RTM_NEWNEIGH)
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		d, ok := parseDevice(m)
		return ok && k.noteDevice(d, kind == unix.RTM_NEWLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, ok := parseAddr(m)
		return ok && k.noteAddr(a, kind == unix.RTM_NEWADDR)
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		r, ok := parseRule(m)
		return ok && k.noteRule(r, kind == unix.RTM_NEWRULE)
	}
	return false
}

// unknown: the news means more than it says. The kernel drops IPv4 routes, for
// one, without a word when their device goes down or their source address goes.
func (k *Kernel) unknown() bool {
	k.known = false
	return true
}

func (k *Kernel) noteRoute(r readRoute, is bool) bool {
	old, had := k.have.routes[r.routeKey]
	if r.protocol != Protocol {
		// One of somebody else that replaced ours, or one of the underlay.
		return (is && had || r.ofUnderlay()) && k.unknown()
	}
	now := hop{k.links[r.index].Name, r.via, r.src, r.mtu}
	switch {
	case is && had && old == now, !is && !had:
		return false
	case is:
		k.have.routes[r.routeKey] = now
	case old == now:
		delete(k.have.routes, r.routeKey)
	}
	return true
}

// noteNeighbour is for dumps too.
func (k *Kernel) noteNeighbour(n readNeighbour, is bool) bool {
	d, ok := k.links[n.index]
	if !ok || !isTunnel(d.Name) {
		return false
	}
	is = is && n.permanent
	if n.forward {
		return set(k.have.forwards, forwardKey{d.Name, n.mac}, n.addr, is)
	}
	if n.addr.IsMulticast() || n.addr.IsUnspecified() { // the kernel's own
		return false
	}
	return set(k.have.neighbours, neighbourKey{d.Name, n.addr}, n.mac, is)
}

// set sets or deletes an entry and reports whether that changed it.
func set[K, V comparable](m map[K]V, key K, value V, is bool) bool {
	old, had := m[key]
	if is {
		m[key] = value
		return !had || old != value
	}
	delete(m, key)
	return had
}

func (k *Kernel) noteDevice(d device, is bool) bool {
	old, had := k.links[d.index]
	switch {
	case had && is && old == d:
		return false
	case had, is && isTunnel(d.Name):
		return k.unknown()
	}
	return false // a pod's
}

func (k *Kernel) noteAddr(a readAddr, is bool) bool {
	_, had := k.underlay.Addrs[a.addr]
	if a.addr.IsLinkLocalUnicast() || had == (is && a.usable) {
		return false
	}
	return k.unknown()
}

func (k *Kernel) noteRule(r readRule, is bool) bool {
	_, had := k.have.rules[r.Rule]
	if r.protocol != Protocol || r.table != Table || had == is {
		return false
	}
	return k.unknown()
}
