package takeover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/fairlead/fairlead/ipam"
)

// Make is Open for a network that host-local may not know yet.
func Make(ctx context.Context, dir, network string) (*Dir, error) {
	if err := os.MkdirAll(filepath.Join(dir, network), 0o755); err != nil {
		return nil, fmt.Errorf("make host-local's network: %w", err)
	}
	return Open(ctx, dir, network)
}

// Change is what host-local is to be told, so that it holds what Fairlead does. Its
// leases have those of their addresses that it is about.
type Change struct {
	// Hold are addresses that host-local does not know to be held, or only by pods that
	// Fairlead knows to be gone.
	Hold []ipam.Lease
	// Free are those of pods that are gone.
	Free []ipam.Lease
	// Kept are those of pods that host-local knows and Fairlead never has.
	Kept []ipam.Lease
}

// Compare finds what host-local is to be told, given what it has and what is held here.
// imported says whether the lease of an owner came from host-local: what it has of others
// it has got since, and they may live. The error names addresses that are held here, and
// there by such a pod.
func Compare(theirs Rows, held []ipam.Lease, imported func(ipam.Owner) bool) (Change, error) {
	there, here := holders(theirs.Leases), holders(held)
	var c Change
	var failed []error
	for _, l := range held {
		lacks := func(a netip.Addr) bool { return there[a] != l.Owner }
		for _, a := range l.Addrs {
			if other := there[a]; lacks(a) && other != (ipam.Owner{}) && !imported(other) {
				failed = append(failed, fmt.Errorf("%s is held by %s here, and by %s in host-local", a, l.Owner, other))
			}
		}
		c.Hold = appendPart(c.Hold, l, lacks)
	}
	for _, l := range theirs.Leases {
		unheld := func(a netip.Addr) bool { return here[a] == ipam.Owner{} }
		if imported(l.Owner) {
			c.Free = appendPart(c.Free, l, unheld)
		} else {
			c.Kept = appendPart(c.Kept, l, unheld)
		}
	}
	return c, errors.Join(failed...)
}

func holders(leases []ipam.Lease) map[netip.Addr]ipam.Owner {
	holder := map[netip.Addr]ipam.Owner{}
	for _, l := range leases {
		for _, a := range l.Addrs {
			holder[a] = l.Owner
		}
	}
	return holder
}

// appendPart appends a lease with some of its addresses, unless it has none of them.
func appendPart(to []ipam.Lease, l ipam.Lease, some func(netip.Addr) bool) []ipam.Lease {
	l.Addrs = slices.DeleteFunc(slices.Clone(l.Addrs), func(a netip.Addr) bool { return !some(a) })
	if len(l.Addrs) == 0 {
		return to
	}
	return append(to, l)
}

// Apply tells host-local. What was done before an error stays: it may be done again.
func (d *Dir) Apply(c Change) error {
	for _, l := range c.Hold {
		for _, a := range l.Addrs {
			if err := d.hold(a, l.Owner); err != nil {
				return fmt.Errorf("have host-local hold %s: %w", a, err)
			}
		}
	}
	for _, l := range c.Free {
		for _, a := range l.Addrs {
			if err := os.Remove(filepath.Join(d.path, a.String())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("have host-local free %s: %w", a, err)
			}
		}
	}
	return nil
}

// hold writes a row as host-local does, in one step, in the place of one that is there.
func (d *Dir) hold(addr netip.Addr, owner ipam.Owner) error {
	unfinished := filepath.Join(d.path, "fairlead.unfinished") // no address: host-local passes over it
	if err := os.WriteFile(unfinished, []byte(owner.ContainerID+"\r\n"+owner.IfName), 0o600); err != nil {
		return err
	}
	return os.Rename(unfinished, filepath.Join(d.path, addr.String()))
}
