package iptables

import (
	"fmt"
	"net/netip"

	"github.com/fairlead/fairlead/proxy/service"
)

const (
	// leafSize is how many addresses a chain may list one by one before they are
	// divided: as many as one level would divide them into.
	leafSize = 1 << stride
	// stride is how many bits of the address one level of the tree decides: at
	// most 2^stride rules a chain.
	stride = 4
)

// tree writes the chains that lead a packet from a root to the rules of its
// destination. Each level compares the next bits of the address, so a packet
// passes some ten rules a level and the levels grow with the logarithm of the
// number of addresses; one for no Service leaves at the first prefix that does
// not match, as a rule in root itself.
//
//	root ── -d 10.96.0.0/12 ──▶ ── -d 10.96.16.0/20 ──▶ ── -d 10.96.17.4/32 -p tcp --dport 80 ──▶ …
//
// The shape depends on nothing but the set of keys: one Service more or less
// changes the chains on its own way only.
//
// Node ports have no address that tells them apart; their tree is of the bits of
// the port, as the last 16 of an IPv4 address.
type tree struct {
	chains Chains
	addr   func(service.Key) netip.Addr // what is compared
	match  func(netip.Prefix) string    // the part of a rule that compares it; "" if all match
	// rules are what becomes of packets with these keys. alone says that they go
	// into a chain that packets for other addresses do not see, but for those
	// within the span of the keys.
	rules func(keys []service.Key, alone bool) []string
}

func byAddress(key service.Key) netip.Addr { return key.Addr }

func matchAddress(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return "-d " + prefixText(p) + " "
}

func byPort(key service.Key) netip.Addr {
	return netip.AddrFrom4([4]byte{2: byte(key.Port >> 8), 3: byte(key.Port)})
}

func matchPort(protocol service.Protocol) func(netip.Prefix) string {
	return func(p netip.Prefix) string {
		if p.Bits() == 32-16 {
			return ""
		}
		b := p.Addr().As4()
		first := int(b[2])<<8 | int(b[3])
		last := first + 1<<(32-p.Bits()) - 1
		return fmt.Sprintf("-p %s -m %s --dport %d:%d ", protocol, protocol, first, last)
	}
}

// root fills the chain where the tree starts, or goes on. The keys are sorted.
func (t tree) root(chain string, keys []service.Key) {
	if t.addresses(keys) <= leafSize {
		t.list(chain, keys, false)
	} else {
		t.descend(chain, keys)
	}
}

// divide adds to a chain the ways to the parts of keys that differ in the next
// bits.
func (t tree) divide(chain string, keys []service.Key) {
	bits := (t.spanned(keys).Bits()/stride + 1) * stride
	for len(keys) > 0 {
		part, _ := t.addr(keys[0]).Prefix(bits)
		n := 0
		for n < len(keys) && part.Contains(t.addr(keys[n])) {
			n++
		}
		t.descend(chain, keys[:n])
		keys = keys[n:]
	}
}

// descend adds to a chain the way to a chain for keys alone.
func (t tree) descend(chain string, keys []service.Key) {
	p := t.spanned(keys)
	if p.IsSingleIP() {
		t.list(chain, keys, false)
		return
	}
	match := t.match(p)
	if match == "" { // of everything: no chain of its own
		t.divide(chain, keys)
		return
	}
	child := chainName("D", match)
	t.chains[chain] = append(t.chains[chain], match+"-j "+child)
	if t.addresses(keys) <= leafSize {
		t.list(child, keys, true)
	} else {
		t.divide(child, keys)
	}
}

// list adds the rules of keys themselves.
func (t tree) list(chain string, keys []service.Key, alone bool) {
	t.chains[chain] = append(t.chains[chain], t.rules(keys, alone)...)
}

// addresses counts what sorted keys differ in.
func (t tree) addresses(keys []service.Key) int {
	n := 0
	for i, key := range keys {
		if i == 0 || t.addr(key) != t.addr(keys[i-1]) {
			n++
		}
	}
	return n
}

// spanned is the longest prefix that sorted keys share.
func (t tree) spanned(keys []service.Key) netip.Prefix {
	first, last := t.addr(keys[0]), t.addr(keys[len(keys)-1])
	for bits := first.BitLen(); ; bits-- {
		if p, _ := first.Prefix(bits); p.Contains(last) {
			return p
		}
	}
}
