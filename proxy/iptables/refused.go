package iptables

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/fairlead/fairlead/cni/host/command"
	"github.com/fairlead/fairlead/proxy/service"
)

// explained is what is known of a failure to write want. If the rules of certain
// Services are the cause it is a *service.RefusedError. They are found by trying: the
// one whose line iptables-restore complains of, or, where it names none, as for what the
// kernel refuses at the end, all that were in what it read.
func (f *family) explained(ctx context.Context, t *service.Table, want Ruleset, err error) error {
	var failed *failedScript
	if !errors.As(err, &failed) || ctx.Err() != nil || errors.Is(err, command.ErrHung) {
		return err
	}
	owners := ownersOf(t, f.ipv6)
	trial := trial{f.tool, want, owners}
	suspects := owners.suspects(failed.script)
	named, ok := owners.of(failed.line)
	if ok {
		suspects = []service.Name{named}
	}
	if len(suspects) == 0 || trial.run(ctx, nil) != nil || trial.run(ctx, suspects) == nil {
		return err // whatever it is, it is not one of them
	}
	refused := trial.search(ctx, suspects)
	if _, found := refused[named]; found {
		refused[named] = err // whose line is that of the real chain
	}
	rest := slices.DeleteFunc(suspects, func(name service.Name) bool { _, ok := refused[name]; return ok })
	// What failed for a while failed for all.
	if len(refused) == 0 || trial.run(ctx, rest) != nil || ctx.Err() != nil {
		return err
	}
	return &service.RefusedError{Services: refused}
}

// owners says whose rules are in a chain.
type owners map[string]service.Name

// ownersOf are the chains of one Service each. Of the others single rules are one
// Service's, as their comment says.
func ownersOf(t *service.Table, ipv6 bool) owners {
	o := owners{}
	for id := range t.Pools {
		if id.IPv6 == ipv6 {
			o[poolChain(id)] = id.Service
		}
	}
	for key, f := range t.Frontends {
		if key.Addr.Is6() == ipv6 {
			o[chainName("F", key.String())] = f.Origin.Service
			o[chainName("S", key.String())] = f.Origin.Service
		}
	}
	return o
}

var (
	chainNamed   = regexp.MustCompile(`^(?:-[ADIX] |:)(\S+)`)
	commentNamed = regexp.MustCompile(`--comment "([^"/]+)/([^":]+)[":]`)
)

// of says whose a line of a script is, if it is one Service's.
func (o owners) of(line string) (service.Name, bool) {
	if found := commentNamed.FindStringSubmatch(line); found != nil {
		return service.Name{Namespace: found[1], Name: found[2]}, true
	}
	if found := chainNamed.FindStringSubmatch(line); found != nil {
		name, ok := o[found[1]]
		return name, ok
	}
	return service.Name{}, false
}

// suspects are all whose lines are in a script, sorted.
func (o owners) suspects(s script) []service.Name {
	found := map[service.Name]bool{}
	for line := range strings.Lines(s.String()) {
		if name, ok := o.of(line); ok {
			found[name] = true
		}
	}
	return sortedNames(found)
}

func sortedNames(set map[service.Name]bool) []service.Name {
	var out []service.Name
	for name := range set {
		out = append(out, name)
	}
	slices.SortFunc(out, service.Name.Compare)
	return out
}

// trial lets the kernel judge rules where no packet meets them: in chains to which
// nothing leads. Their names begin like those of all our chains, so the next Sync,
// which after a failure reads what there is, removes them.
type trial struct {
	tool
	want Ruleset
	owners
}

const trialPrefix = prefix + "-" // no other name of ours has two dashes there

// run tries the rules of some Services, and those that are nobody's: at least an empty
// chain, so that where nothing can be written at all, no Service is blamed for it.
func (t trial) run(ctx context.Context, services []service.Name) error {
	wanted := map[service.Name]bool{}
	for _, name := range services {
		wanted[name] = true
	}
	renamed := func(text string) string { return strings.ReplaceAll(text, prefix, trialPrefix) }
	part := Ruleset{}
	for table, chains := range t.want {
		part[table] = Chains{trialPrefix + "ANY": nil}
		for chain, rules := range chains {
			if name, owned := t.owners[chain]; !ours(chain) || owned && !wanted[name] {
				continue
			}
			var tried []string
			for _, rule := range rules {
				if name, owned := t.of(rule); !owned || wanted[name] {
					tried = append(tried, renamed(rule))
				}
			}
			part[table][renamed(chain)] = tried
		}
	}
	return t.restore(ctx, newScript(nil, part))
}

// search finds out which of the Services, of which at least one is refused, are.
func (t trial) search(ctx context.Context, services []service.Name) map[service.Name]error {
	err := t.run(ctx, services)
	if err == nil || errors.Is(err, command.ErrHung) {
		return nil
	}
	if len(services) == 1 {
		return map[service.Name]error{services[0]: err}
	}
	found := map[service.Name]error{}
	for half := range slices.Chunk(services, (len(services)+1)/2) {
		for name, err := range t.search(ctx, half) {
			found[name] = err
		}
	}
	return found
}

// failedScript is an iptables-restore that failed, and with what.
type failedScript struct {
	cause  error
	script script
	line   string // of which it complains; "" if it names none
}

func (e *failedScript) Error() string {
	if e.line == "" {
		return fmt.Sprintf("write rules: %v", e.cause)
	}
	return fmt.Sprintf("write rules: %v (the line is: %s)", e.cause, e.line)
}

func (e *failedScript) Unwrap() error { return e.cause }
