package metrics

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/service"
)

// No more Service ports than the limit have series; no connection is lost of those
// that have none, not even when they go.
func TestConnections(t *testing.T) {
	counted := map[service.Origin]uint64{}
	var failure error
	m := New("v1", "iptables")
	m.CountConnections(2, func() (map[service.Origin]uint64, error) { return counted, failure })
	set := func(name string, n uint64) {
		counted[service.Origin{Service: service.Name{Namespace: "default", Name: name}, Port: "http"}] = n
	}
	want := func(want ...string) {
		t.Helper()
		var got []string
		for _, line := range scrape(t, m) {
			if labels, ok := strings.CutPrefix(line, "fairlead_service_connections_total"); ok {
				got = append(got, labels)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("connections (-want +got):\n%s", diff)
		}
	}
	want()
	set("b", 1)
	set("c", 2)
	want(`{namespace="default",port="http",service="b"} 1`, `{namespace="default",port="http",service="c"} 2`)

	set("a", 3) // sorts first, comes last
	set("d", 4)
	want(`{namespace="",port="",service=""} 7`,
		`{namespace="default",port="http",service="b"} 1`, `{namespace="default",port="http",service="c"} 2`)

	clear(counted)
	set("c", 5)
	set("d", 6)
	set("e", 7)
	want(`{namespace="",port="",service=""} 9`,
		`{namespace="default",port="http",service="c"} 5`, `{namespace="default",port="http",service="e"} 7`)

	failure = errors.New("no")
	want()
}
