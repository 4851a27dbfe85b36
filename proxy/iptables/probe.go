package iptables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fairlead/fairlead/cni/host/command"
	"github.com/fairlead/fairlead/proxy/nfacct"
	"github.com/fairlead/fairlead/proxy/service"
)

// need is something of iptables and the kernel that rules are made of.
type need struct {
	table, rule string
	module      string // of the kernel; it loads by itself where there are modules
	optional    string // what cannot be served without; "" if nothing can
}

const (
	withAffinity = "session affinity"
	withSCTP     = "SCTP"
	withCounters = "counting connections"
)

// needs are all that Render uses.
func (f *family) needs() []need {
	refusal := service.Key{Protocol: service.TCP}
	r := renderer{table: &service.Table{}, ipv6: f.ipv6, opts: f.opts, nat: Chains{}, filter: Chains{}}
	r.postrouting()
	hairpin, masquerade := r.nat[chainPostrouting][0], r.nat[chainPostrouting][3]
	_, masquerade, _ = strings.Cut(masquerade, "-j ")
	loopback := "127.0.0.1:1"
	if f.ipv6 {
		loopback = "[::1]:1"
	}
	return []need{
		{nat, "-m comment --comment Fairlead", "xt_comment", ""},
		{filter, "-m conntrack --ctstate NEW", "xt_conntrack", ""},
		{nat, "-m addrtype --dst-type LOCAL", "xt_addrtype", ""},
		{nat, "-m statistic --mode nth --every 2 --packet 0", "xt_statistic", ""},
		{nat, "-m mark --mark 0x1/0x1", "xt_mark", ""},
		{nat, "-j MARK --set-xmark 0x1/0x1", "xt_mark", ""},
		{nat, strings.TrimSuffix(hairpin, " -j "+masquerade), "xt_bpf", ""},
		{nat, "-j " + masquerade, "xt_MASQUERADE", ""},
		{nat, "-p tcp -j DNAT --to-destination " + loopback, "xt_nat", ""},
		{filter, "-p tcp " + r.refusal(service.Path{Verdict: service.Reject}, refusal), "ipt_REJECT, ip6t_REJECT", ""},
		{nat, "-m recent --set --name FAIRLEAD-B --rsource", "xt_recent", withAffinity},
		{nat, "-p sctp -m sctp --dport 1", "xt_sctp", withSCTP},
		{nat, counting + probeCounter, "xt_nfacct", withCounters},
	}
}

// errLacks: iptables or the kernel lacks what no rule set does without.
var errLacks = errors.New("iptables or the kernel cannot do it")

// probe finds out what is not there. It asks in a network namespace of its own that
// goes when it is answered, so that no rule of this one is written; where none may be
// made, nothing is found out.
func (f *family) probe() error {
	needs := f.needs()
	err := f.tryElsewhere(needs...)
	if err == nil || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	f.lacks = map[string]error{}
	for _, n := range needs {
		err := f.tryElsewhere(n)
		if err == nil {
			continue
		}
		err = fmt.Errorf("%w: a rule with %q (kernel module %s; iptables extensions): %w", errLacks, n.rule, n.module, err)
		if n.optional == "" {
			return err
		}
		f.lacks[n.optional] = err
	}
	return nil
}

const probeCounter = counterPrefix + "probe"

// tryElsewhere makes rules in an empty namespace.
func (f *family) tryElsewhere(needs ...need) error {
	rules := Ruleset{nat: {}, filter: {}}
	for _, n := range needs {
		chain := prefix + "PROBE"
		if strings.Contains(n.rule, "MASQUERADE") {
			chain = chainPostrouting
		}
		rules[n.table][chain] = append(rules[n.table][chain], n.rule)
	}
	restore := command.Command{Name: f.restoreCmd, Args: waits, Input: newScript(nil, rules).writeTo, Within: f.within(len(needs))}
	return elsewhere(func() error {
		_ = nfacct.Add(probeCounter) // where that fails so does the rule
		_, err := restore.Run(context.Background())
		return err
	})
}

// elsewhere runs f on a thread in a network namespace that goes with the thread.
func elsewhere(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // /proc/net shows the namespace of this one
			done <- elsewhere(f)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: so the thread ends with the goroutine.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// unserved are the Services that need what is not there.
func (f *family) unserved(t *service.Table) error {
	refused := map[service.Name]error{}
	if err := f.lacks[withAffinity]; err != nil {
		for id, pool := range t.Pools {
			if pool.Affinity > 0 && f.concernsPool(id) {
				refused[id.Service] = err
			}
		}
	}
	if err := f.lacks[withSCTP]; err != nil {
		for key, frontend := range t.Frontends {
			if key.Protocol == service.SCTP && f.concernsKey(key) {
				refused[frontend.Origin.Service] = err
			}
		}
	}
	if len(refused) == 0 {
		return nil
	}
	return &service.RefusedError{Services: refused}
}
