package iptables

import (
	"net/netip"
	"slices"

	"github.com/fairlead/fairlead/proxy/service"
)

const (
	// leafSize is how many addresses a chain may list one by one before they are
	// divided.
	leafSize = 8
	// stride is how many bits of the address one level of the tree decides: at
	// most 2^stride rules a chain.
	stride = 4
)

// tree writes the chains that lead a packet from root to the rules of its
// destination. Each level compares the next bits of the address, so a packet
// passes some ten rules a level and the levels grow with the logarithm of the
// number of addresses; one for no Service leaves at the first prefix that does
// not match, as a rule in root itself.
//
//	root ── -d 10.96.0.0/12 ──▶ ── -d 10.96.16.0/20 ──▶ ── -d 10.96.17.4/32 -p tcp --dport 80 ──▶ …
//
// The shape depends on nothing but the set of keys: one Service more or less
// changes the chains on its own way only.
type tree struct {
	chains Chains
	rules  func(service.Key) []string // what becomes of a packet with this key
}

// root fills the chain where the tree starts. The keys are sorted.
func (t tree) root(chain string, keys []service.Key) {
	t.chains[chain] = nil
	if addresses(keys) > leafSize && spanned(keys).Bits() > 0 {
		t.descend(chain, keys)
	} else {
		t.fill(chain, keys)
	}
}

// fill writes the chain that leads to keys.
func (t tree) fill(chain string, keys []service.Key) {
	if addresses(keys) <= leafSize {
		t.list(chain, keys)
		return
	}
	bits := (spanned(keys).Bits()/stride + 1) * stride
	for len(keys) > 0 {
		part, _ := keys[0].Addr.Prefix(bits)
		n := 0
		for n < len(keys) && part.Contains(keys[n].Addr) {
			n++
		}
		t.descend(chain, keys[:n])
		keys = keys[n:]
	}
}

// descend adds to a chain the way to a chain for keys alone.
func (t tree) descend(chain string, keys []service.Key) {
	p := spanned(keys)
	if p.IsSingleIP() {
		t.list(chain, keys)
		return
	}
	child := chainName("D", p.String())
	t.chains[chain] = append(t.chains[chain], "-d "+p.String()+" -j "+child)
	t.fill(child, keys)
}

// list adds the rules of keys themselves.
func (t tree) list(chain string, keys []service.Key) {
	for _, key := range keys {
		t.chains[chain] = append(t.chains[chain], t.rules(key)...)
	}
}

// addresses counts the addresses of sorted keys.
func addresses(keys []service.Key) int {
	return len(slices.CompactFunc(slices.Clone(keys), func(a, b service.Key) bool { return a.Addr == b.Addr }))
}

// spanned is the longest prefix that sorted keys share.
func spanned(keys []service.Key) netip.Prefix {
	first, last := keys[0].Addr, keys[len(keys)-1].Addr
	for bits := first.BitLen(); ; bits-- {
		if p, _ := first.Prefix(bits); p.Contains(last) {
			return p
		}
	}
}
