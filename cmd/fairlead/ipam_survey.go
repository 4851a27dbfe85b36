package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/fairlead/fairlead/ipam"
)

// survey is what a check compares: what is held and what is used.
type survey struct {
	boot       string
	now        time.Time
	rows       []row                   // of all networks
	gives      map[string][]ipam.Usage // network → its ranges
	namespaces []namespace
	found      []finding
}

// read reads a network and checks its store.
func (s *survey) read(ctx context.Context, n network) {
	ctx, cancel := context.WithTimeout(ctx, storePatience)
	defer cancel()
	faults, err := n.store.Check(ctx)
	if err == nil {
		err = n.store.View(ctx, func(tx ipam.Tx) error { return s.readRows(n.name, tx) })
	}
	if err != nil {
		faults = append(faults, err.Error())
	}
	for _, fault := range faults {
		s.found = append(s.found, finding{Network: n.name, Kind: "store", Detail: fault})
	}
}

func (s *survey) readRows(name string, tx ipam.Tx) error {
	faults, err := ipam.Verify(tx, s.boot)
	if err != nil {
		return err
	}
	for _, fault := range faults {
		s.found = append(s.found, finding{Network: name, Kind: "store", Detail: fault})
	}
	leases, unreadable := ipam.Leases(tx, s.boot) // Verify names those, too
	s.rows = append(s.rows, rowsOf(name, leases...)...)
	if unreadable != nil {
		return nil
	}
	s.gives[name], err = ipam.Ranges(tx, s.boot, s.now)
	return err
}

// compare finds rows without a namespace and namespaces without a row.
func (s *survey) compare() {
	for _, r := range s.rows {
		if detail := s.missing(r); detail != "" {
			s.found = append(s.found, finding{r.Network, "no-netns", r.Address.String(), r.Container, r.Netns, detail})
		}
	}
	for _, n := range s.namespaces {
		for _, addr := range n.addrs {
			if slices.ContainsFunc(s.rows, func(r row) bool { return r.Address == addr }) {
				continue
			}
			for _, network := range s.giving(addr) {
				s.found = append(s.found, finding{network, "no-row", addr.String(), "", n.path, "it is used in " + n.path})
			}
		}
	}
}

// missing says what namespace a row lacks, "" when it has one.
func (s *survey) missing(r row) string {
	if r.Netns == "" {
		if slices.ContainsFunc(s.namespaces, func(n namespace) bool { return n.has(r.Address) }) {
			return ""
		}
		return "no network namespace has it"
	}
	if isNamespace(r.Netns) {
		return ""
	}
	return "network namespace " + r.Netns + " is gone"
}

// giving returns the networks that would give addr, sorted.
func (s *survey) giving(addr netip.Addr) []string {
	var names []string
	for name, ranges := range s.gives {
		if slices.ContainsFunc(ranges, func(u ipam.Usage) bool { return u.Gives(addr) }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
