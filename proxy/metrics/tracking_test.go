package metrics

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/conntrack"
)

func TestTracking(t *testing.T) {
	m := New("v1", "iptables")
	before := len(scrape(t, m))
	var failure error
	m.Tracking(func() (conntrack.Usage, error) {
		return conntrack.Usage{Flows: 90, Limit: 100, Dropped: 7}, failure
	})
	want := []string{"fairlead_conntrack_dropped_packets_total 7", "fairlead_conntrack_flows 90", "fairlead_conntrack_limit 100"}
	var got []string
	for _, line := range scrape(t, m) {
		if len(line) > len("fairlead_conntrack") && line[:len("fairlead_conntrack")] == "fairlead_conntrack" {
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if failure = errors.New("the kernel tracks nothing"); len(scrape(t, m)) != before {
		t.Error("something is told that was not read")
	}
}
