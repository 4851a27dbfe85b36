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
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/fairlead/fairlead/cni/host/command"
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
	// Counters is of how many Service ports connections are counted, at most.
	Counters int
	// Node is the name of the node: nodes begin the turns of a pool at different
	// backends.
	Node string
}

// Backend programs one network namespace: the one in which its methods run.
// It is for one goroutine, but for Connections.
type Backend struct {
	families []*family
	missing  []error
	counters *counters
}

// New finds the iptables commands and looks whether the kernel takes them. A
// host may do without the commands or the tables of one family (see Missing), not
// without both. The error wraps exec.ErrNotFound if there are no commands.
func New(config Config) (*Backend, error) {
	b := &Backend{counters: newCounters(config.Counters)}
	for _, ipv6 := range []bool{false, true} {
		f, err := newFamily(config, ipv6)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, errNoTable) || errors.Is(err, errLacks) {
			b.missing = append(b.missing, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		b.families = append(b.families, f)
	}
	if len(b.families) == 0 {
		return nil, errors.Join(b.missing...)
	}
	for _, f := range b.families {
		f.opts.Counters = b.counters.of
	}
	if b.Uncounted() != nil {
		b.counters.limit = 0
	}
	return b, nil
}

// Uncounted says why no connections are counted; nil if they are.
func (b *Backend) Uncounted() error {
	var errs []error
	for _, f := range b.families {
		errs = append(errs, f.lacks[withCounters])
	}
	return errors.Join(errs...)
}

// Report has a function told of each round of a family from now on.
func (b *Backend) Report(to func(Round)) {
	for _, f := range b.families {
		f.report = to
	}
}

// Connections says how many connections each Service port has got that has a counter.
// It is safe for concurrent use.
func (b *Backend) Connections() (map[service.Origin]uint64, error) { return b.counters.read() }

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
	change = b.counters.choose(t, change)
	var errs []error
	for _, f := range b.families {
		f.opts.CountPackets = b.counters.packets
		errs = append(errs, f.sync(ctx, t, change))
	}
	if err := errors.Join(errs...); err != nil {
		b.counters.known = false
		return err
	}
	b.counters.tidy(t, change)
	return nil
}

// Intact says whether our rules are as we wrote them, as far as others are seen (see
// Watch) and, now and then, whether the rules are there that lead to ours: other
// programs flush whole tables. If not, the next Sync mends everything.
func (b *Backend) Intact() (bool, error) {
	intact := true
	for _, f := range b.families {
		ok, err := f.intact()
		if err != nil {
			return false, err
		}
		intact = intact && ok
	}
	return intact, nil
}

// lookEvery is how often it is looked for the rules that lead to ours though nobody
// was seen to touch them; lookSeldom, where somebody sees: each look at ip_tables has
// the kernel copy a table, which takes a tenth of a second with 10,000 Services.
const lookEvery, lookSeldom = 10 * time.Second, time.Minute

func (f *family) intact() (bool, error) {
	if f.have == nil {
		return true, nil // nothing was programmed, or it is about to be
	}
	seen, every := nothing, lookEvery
	if f.witness != nil {
		seen, every = f.witness.sight(), lookSeldom
	}
	var ok bool
	var err error
	switch {
	case seen == tampered:
		ok, err = f.asWritten()
	case seen == touched || time.Since(f.looked) >= every:
		ok, err = f.reached()
	default:
		return true, nil
	}
	f.looked = time.Now()
	if err == nil && !ok {
		f.have = nil
	}
	return ok, err
}

// asWritten reads all rules.
func (f *family) asWritten() (bool, error) {
	have, err := f.read(context.Background())
	return err == nil && len(newScript(have, f.have)) == 0, err
}

// reached looks for the rules that lead to ours.
func (f *family) reached() (bool, error) {
	for table, chains := range f.have {
		for chain, rules := range chains {
			if ours(chain) {
				continue
			}
			for _, rule := range rules {
				ok, err := f.has(table, chain, rule)
				if err != nil {
					return false, fmt.Errorf("look for a rule in %s %s: %w", table, chain, err)
				}
				if !ok {
					return false, nil
				}
			}
		}
	}
	return true, nil
}

// Cleanup removes every chain and rule that is ours.
func (b *Backend) Cleanup(ctx context.Context) error {
	var errs []error
	for _, f := range b.families {
		errs = append(errs, f.become(ctx, nil))
	}
	return errors.Join(append(errs, RemoveCounters(ctx))...)
}

// family is the rules of IPv4 or of IPv6.
type family struct {
	tool
	opts Options
	ipv6 bool
	have Ruleset // what the kernel has; nil: unknown, it must be asked
	// looked is when it was last asked whether it has them still.
	looked time.Time
	// staleFlows: there may be flows that began under other rules. gone are
	// destinations that were dropped from the Table since there were none.
	staleFlows bool
	gone       map[service.Key]bool
	lacks      map[string]error // what cannot be served, and why
	round      Round            // the one that is going on, and what is left of those before
	report     func(Round)
}

// Round is what was done to make one family's rules agree with a Table.
type Round struct {
	IPv6 bool
	// Took is the whole, Flows what of it was looking for stale flows, 0 if that was
	// not needed.
	Took, Flows time.Duration
	// Full: everything was compiled, not only the pools that changed. (Written is what
	// changed in either case.)
	Full bool
	// Failed: the kernel or iptables did not take it. Hung: iptables did not come to an
	// end, and was ended.
	Failed, Hung bool
	// Rules are how many there are, Written how many were written, table by table.
	Rules, Written map[string]int
	// StaleFlows are how many were ended.
	StaleFlows int
}

// sync is program, with a report.
func (f *family) sync(ctx context.Context, t *service.Table, change service.Change) error {
	began := time.Now()
	f.round = Round{IPv6: f.ipv6, Rules: f.round.Rules}
	err := f.program(ctx, t, change)
	f.round.Took, f.round.Failed, f.round.Hung = time.Since(began), err != nil, errors.Is(err, command.ErrHung)
	if f.report != nil && ctx.Err() == nil {
		f.report(f.round)
	}
	return err
}

// program writes what changed. Flows that began under the old rules are looked at
// after that, when no new one can begin.
func (f *family) program(ctx context.Context, t *service.Table, change service.Change) error {
	f.noteFlows(t, change)
	if len(f.lacks) > 0 {
		if err := f.unserved(t); err != nil {
			return err
		}
	}
	if f.have == nil {
		f.opts.DropInvalid = !tcpBeLiberal()
	}
	var err error
	switch {
	case f.have == nil || change.Node || slices.ContainsFunc(change.Frontends, f.concernsKey):
		f.round.Full = true
		want := Render(t, f.ipv6, f.opts)
		err = f.explained(ctx, t, want, f.become(ctx, want))
	case slices.ContainsFunc(change.Pools, f.concernsPool):
		err = f.replacePools(ctx, t, change.Pools)
	}
	if err != nil || !f.staleFlows {
		return err
	}
	began := time.Now()
	f.round.StaleFlows, err = conntrack.Clean(t, f.ipv6, f.gone)
	if f.round.Flows = time.Since(began); err != nil {
		return err
	}
	f.staleFlows, f.gone = false, map[service.Key]bool{}
	return nil
}

// noteFlows remembers, until it is done, what a change means for flows that
// began before it.
func (f *family) noteFlows(t *service.Table, change service.Change) {
	if f.gone == nil { // the first Sync: there may be flows of long ago
		f.gone, f.staleFlows = map[service.Key]bool{}, true
	}
	if !conntrack.Concerns(t, change, f.ipv6) {
		return
	}
	f.staleFlows = true
	for _, key := range change.Frontends {
		if _, ok := t.Frontends[key]; !ok && f.concernsKey(key) {
			f.gone[key] = true
		}
	}
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
		f.have, f.rules = have, total(have.count())
	}
	if err := f.restoreGuarded(ctx, want); err != nil {
		f.have = nil
		return err
	}
	f.have = want
	return nil
}

// restoreGuarded writes want. Addresses of 127.0.0.0/8 are routed only as long as
// the guard is there.
func (f *family) restoreGuarded(ctx context.Context, want Ruleset) error {
	_, guarded := f.have[filter][chainLocalhost]
	_, guard := want[filter][chainLocalhost]
	if guarded && !guard && !f.opts.LocalnetWasOn {
		if err := routeLocalnet(false); err != nil {
			return err
		}
	}
	s := newScript(f.have, want)
	if err := f.restore(ctx, s); err != nil {
		return err
	}
	f.round.Rules, f.round.Written = want.count(), s.count()
	f.rules = total(f.round.Rules)
	if guard {
		return routeLocalnet(true)
	}
	return nil
}

// replacePools writes the chains of the given pools and looks at nothing else:
// the usual change, of an endpoint, is found by its name whatever else there is.
func (f *family) replacePools(ctx context.Context, t *service.Table, ids []service.PoolID) error {
	ids = slices.DeleteFunc(slices.Clone(ids), func(id service.PoolID) bool { return !f.concernsPool(id) })
	want := renderPools(t, ids, f.opts)
	have := Chains{}
	for _, id := range ids {
		chain := poolChain(id)
		if rules, ok := f.have[nat][chain]; ok {
			have[chain] = rules
		}
	}
	s := newScript(Ruleset{nat: have}, want)
	if err := f.restore(ctx, s); err != nil {
		f.have = nil
		return f.explained(ctx, t, want, err)
	}
	f.round.Written = s.count()
	f.round.Rules[nat] += want.count()[nat] - Ruleset{nat: have}.count()[nat]
	f.rules = total(f.round.Rules)
	for chain := range have {
		delete(f.have[nat], chain)
	}
	maps.Copy(f.have[nat], want[nat])
	return nil
}
