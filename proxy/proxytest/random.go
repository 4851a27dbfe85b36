package proxytest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/service"
)

var (
	seed  = flag.Uint64("proxytest.seed", 1, "seed of the random clusters")
	steps = flag.Int("proxytest.steps", 3, "how often each random cluster changes")
)

// generator makes clusters in which everything that the rows try one by one is
// mixed.
type generator struct{ *rand.Rand }

// flowsPerStep is how many flows are tried after each change.
const flowsPerStep = 5

// random goes through a random cluster, step by step. There are no rows to say
// what should be: the packets must agree with the oracle.
func (c *cluster) random(t *testing.T, g generator) {
	for i := range *steps {
		c.apply(t, g.objects()...)
		c.forgetFlows(t)
		for range flowsPerStep {
			from, to := g.flow(c.variant)
			decision := c.lookup(from, to)
			if diff := cmp.Diff(c.seen(decision, from, to), c.observe(t, from, to, decision)); diff != "" {
				t.Errorf("seed %d, step %d, %s asks %s: (-oracle +packets)\n%s", *seed, i+1, from, to, diff)
			}
		}
	}
}

// config is what an operator may have said.
func (g generator) config() service.Config {
	return service.Config{
		Pods:                    []service.PodsBy{service.ByNodeCIDR, service.ByInterface}[g.IntN(2)],
		PodInterfaces:           podInterfaces(),
		MasqueradeAll:           g.IntN(3) == 0,
		SourceRangesOnNodePorts: g.IntN(3) == 0,
	}
}

// names of the Services; each has numbers of its own for addresses and ports.
const services = 3

func (g generator) objects() []object {
	var out []object
	for n := range services {
		name := fmt.Sprintf("s%d", n)
		switch g.IntN(6) {
		case 0: // stays as it is
		case 1:
			out = append(out, gone(name))
		default:
			out = append(out, svc(name, n, g.details(n)...))
		}
		if g.IntN(3) > 0 {
			out = append(out, slice(name, name, g.endpoints()...))
		}
	}
	return out
}

func (g generator) details(n int) []detail {
	details := []detail{nodePort(uint16(30080 + n))}
	optional := []detail{
		at(extIP(n)), balanced(lbIP(n)), externalLocal, internalLocal, affinity(time.Hour),
		allowed("203.0.113.0/24", "2001:db8::/64"), allowed("192.168.50.1/32", "fd00:50::1/128"),
		at(extIP(0)), // now and then two Services claim one
	}
	for _, d := range optional {
		if g.IntN(3) == 0 {
			details = append(details, d)
		}
	}
	return details
}

func (g generator) endpoints() []endpoint {
	var out []endpoint
	for _, party := range servers {
		if g.IntN(4) == 0 {
			continue
		}
		e := []endpoint{ready(party), ready(party), unready(party), leaving(party)}[g.IntN(4)]
		if g.IntN(2) == 0 {
			e = e.forZone([]string{"z1", "z2"}[g.IntN(2)])
		}
		if g.IntN(4) == 0 {
			e = e.forNode([]string{"n1", "n2"}[g.IntN(2)])
		}
		out = append(out, e)
	}
	return out
}

// flow is a sender and whom it asks.
func (g generator) flow(v variant) (from string, to netip.AddrPort) {
	from = []string{"client", "node", "outside", "a", "b"}[g.IntN(5)]
	n := g.IntN(services)
	switch g.IntN(4) {
	case 0:
		return from, netip.AddrPortFrom(nodeIP(v), uint16(30080+n))
	case 1:
		return from, netip.AddrPortFrom(extIP(n)(v), 80)
	case 2:
		return from, netip.AddrPortFrom(lbIP(n)(v), 80)
	}
	return from, netip.AddrPortFrom(vip(n)(v), 80)
}
