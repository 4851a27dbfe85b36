package iptables

import (
	"strings"
	"testing"

	"github.com/fairlead/fairlead/proxy/service"
)

// What others do to the rules is told of the Services that it concerns.
func TestDifferences(t *testing.T) {
	everyVariant(t, func(t *testing.T, n *node) {
		n.counters = 10
		n.backend = n.start()
		r := service.NewResolver(service.Config{NodeName: "n1"})
		n.mustSync(r.Table(), r.Apply(serverAs("web", "10.96.0.1")))
		n.mustSync(r.Table(), r.Apply(serverAs("other", "10.96.0.2")))
		n.wantDifferences(r.Table(), map[string]string{})

		pool := poolChain(service.PoolID{Origin: origin("web")})
		n.RunT(t, "iptables-"+n.variant, "-w", "-t", "nat", "-F", pool)
		n.RunT(t, "iptables-"+n.variant, "-w", "-t", "nat", "-D", chainPostrouting, "1")
		n.wantDifferences(r.Table(), map[string]string{
			"default/web": "missing: -A " + pool,
			"/":           "missing: -A " + chainPostrouting,
		})
		n.backend = n.start()
		n.mustSync(r.Table(), service.Change{Node: true})
		n.wantDifferences(r.Table(), map[string]string{})
	})
}

// wantDifferences wants what is told of each Service to begin so, behind its table.
func (n *node) wantDifferences(t *service.Table, want map[string]string) {
	n.t.Helper()
	var got map[service.Name][]string
	if err := n.Do(func() (err error) {
		got, err = n.backend.Differences(n.t.Context(), t)
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	for name, lines := range got {
		begins, ok := want[name.String()]
		for _, line := range lines {
			if !ok || !strings.HasPrefix(line, "table nat: "+begins) {
				n.t.Errorf("%s: %s", name, line)
			}
		}
	}
	if len(got) != len(want) {
		n.t.Errorf("differences of %d Services, want %d: %v", len(got), len(want), got)
	}
}
