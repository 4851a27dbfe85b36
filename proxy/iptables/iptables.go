// Package iptables compiles the Table of proxy/service into iptables rules and
// keeps the kernel's rules equal to them.
//
// render.go is pure: Table in, rules out. This file and apply.go have the
// effects. Each round costs one iptables-restore per family, with only the chains
// that changed in it. All chains that are ours start with FAIRLEAD-; nothing else
// is touched, but for the rules that lead from the built-in chains to ours.
package iptables

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/proxy/conntrack"
	"github.com/fairlead/fairlead/proxy/service"
)

// Config says which iptables to use and how.
type Config struct {
	// Variant is "legacy" or "nft" for iptables-legacy or iptables-nft, and ""
	// for what the host calls iptables.
	Variant string
	// MasqueradeMark is the bit of the packet mark for packets to be
	// masqueraded. kube-proxy's is 0x4000.
	MasqueradeMark uint32
}

// Backend programs one network namespace: the one in which its methods run.
// It is for one goroutine.
type Backend struct {
	families []*family
	missing  []error
}

// New finds the iptables commands and looks whether the kernel takes them. A
// host may do without one family (see Missing), not without both.
func New(ctx context.Context, config Config) (*Backend, error) {
	b := &Backend{}
	for _, ipv6 := range []bool{false, true} {
		f, err := newFamily(ctx, config, ipv6)
		if err != nil {
			b.missing = append(b.missing, err)
			continue
		}
		b.families = append(b.families, f)
	}
	if len(b.families) == 0 {
		return nil, errors.Join(b.missing...)
	}
	return b, nil
}

// Missing says for a family that cannot be used why. Its Services are not served.
func (b *Backend) Missing() []error { return b.missing }

// String says which commands are in use, for logs.
func (b *Backend) String() string {
	var versions []string
	for _, f := range b.families {
		versions = append(versions, f.version)
	}
	return strings.Join(versions, ", ")
}

// Sync makes the kernel agree with t. change says how t differs from the Table
// of the Sync before. After an error the next Sync reads back what the kernel
// has and mends what differs, whatever its change says; so does the first one.
func (b *Backend) Sync(ctx context.Context, t *service.Table, change service.Change) error {
	var errs []error
	for _, f := range b.families {
		errs = append(errs, f.sync(ctx, t, change))
	}
	return errors.Join(errs...)
}

// Cleanup removes every chain and rule that is ours.
func (b *Backend) Cleanup(ctx context.Context) error {
	var errs []error
	for _, f := range b.families {
		errs = append(errs, f.become(ctx, nil))
	}
	return errors.Join(errs...)
}

// family is the rules of IPv4 or of IPv6.
type family struct {
	tool
	opts Options
	ipv6 bool
	have Ruleset // what the kernel has; nil: unknown, it must be asked
}

// sync programs what changed. Flows that began under the old rules are looked at
// after that, when no new one can begin.
func (f *family) sync(ctx context.Context, t *service.Table, change service.Change) error {
	first := f.have == nil
	var err error
	switch {
	case first || change.Node || slices.ContainsFunc(change.Frontends, f.concernsKey):
		err = f.become(ctx, Render(t, f.ipv6, f.opts))
	case slices.ContainsFunc(change.Pools, f.concernsPool):
		err = f.replacePools(ctx, t, change.Pools)
	}
	if err != nil || !first && !conntrack.Concerns(t, change) {
		return err
	}
	gone := slices.DeleteFunc(slices.Clone(change.Frontends), func(key service.Key) bool {
		_, ok := t.Frontends[key]
		return ok
	})
	if _, err = conntrack.Clean(t, f.ipv6, gone); err != nil {
		f.have = nil
	}
	return err
}

func (f *family) concernsKey(key service.Key) bool    { return key.Addr.Is6() == f.ipv6 }
func (f *family) concernsPool(id service.PoolID) bool { return id.IPv6 == f.ipv6 }

// become makes want all that there is.
func (f *family) become(ctx context.Context, want Ruleset) error {
	if f.have == nil {
		have, err := f.read(ctx)
		if err != nil {
			return err
		}
		f.have = have
	}
	if err := f.restore(ctx, script(f.have, want)); err != nil {
		f.have = nil
		return err
	}
	f.have = want
	return nil
}

// replacePools writes the chains of the given pools and looks at nothing else:
// the usual change, of an endpoint, is found by its name whatever else there is.
func (f *family) replacePools(ctx context.Context, t *service.Table, ids []service.PoolID) error {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id service.PoolID) bool { return !f.concernsPool(id) })
	want := renderPools(t, ids)
	have := Chains{}
	for _, id := range ids {
		chain := poolChain(id)
		if rules, ok := f.have[nat][chain]; ok {
			have[chain] = rules
		}
	}
	if err := f.restore(ctx, script(Ruleset{nat: have}, want)); err != nil {
		f.have = nil
		return err
	}
	for chain := range have {
		delete(f.have[nat], chain)
	}
	maps.Copy(f.have[nat], want[nat])
	return nil
}
