package inspect

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/proxy/service"
)

func TestServicesOfTheKernel(t *testing.T) {
	i := inspector()
	web := service.Name{Namespace: "default", Name: "web"}
	i.Connections = func() (map[service.Origin]uint64, error) {
		return map[service.Origin]uint64{{Service: web, Port: "http"}: 7}, nil
	}
	i.Differences = func(context.Context) (map[service.Name][]string, error) {
		return map[service.Name][]string{
			web:                                  {"one is missing", "another too"},
			{}:                                   {"the hooks are missing"},
			{Namespace: "default", Name: "gone"}: {"is there and should not be"},
		}, nil
	}
	client := served(t, i)
	for question, want := range map[string][]string{
		"/services":                  {"/ 0 [the hooks are missing]", "default/gone 0 [is there and should not be]", "default/web 7 [one is missing another too]"},
		"/services?name=default/web": {"/ 0 [the hooks are missing]", "default/web 7 [one is missing another too]"},
	} {
		var rows []Row
		if err := client.Get(t.Context(), question, &rows); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, row := range rows {
			n := uint64(0)
			if row.Connections != nil {
				n = *row.Connections
			}
			got = append(got, strings.Join([]string{row.origin().Service.String(), string(rune('0' + n)), "[" + strings.Join(row.Kernel, " ") + "]"}, " "))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", question, diff)
		}
	}
	i.Differences = func(context.Context) (map[service.Name][]string, error) { return nil, errors.New("no iptables") }
	if err := client.Get(t.Context(), "/services", new([]Row)); err == nil || !strings.Contains(err.Error(), "no iptables") {
		t.Errorf("if the kernel cannot be asked: %v", err)
	}
}

func TestLive(t *testing.T) {
	i := inspector()
	addr := netip.MustParseAddrPort
	events := []Event{
		{From: addr("10.0.0.1:1"), To: addr("10.96.0.10:80"), Protocol: "tcp", Outcome: "begun"},
		{From: addr("10.0.0.1:1"), To: addr("10.96.0.10:81"), Protocol: "tcp", Outcome: "begun"},
		{From: addr("10.0.0.1:1"), To: addr("10.96.0.10:80"), Protocol: "udp", Outcome: "begun"},
		{From: addr("10.0.0.1:1"), To: addr("10.96.0.10:80"), Protocol: "tcp", Outcome: "dropped", Trouble: true},
		{To: addr("10.96.0.11:80"), Protocol: "tcp", Outcome: "last", Trouble: true},
	}
	client := served(t, i)
	if err := client.Live(t.Context(), Filter{}, nil); err == nil || !strings.Contains(err.Error(), "iptables") {
		t.Errorf("where nobody can look on: %v", err)
	}
	i.Watch = func(ctx context.Context, see func(Event)) error {
		for _, e := range events {
			see(e)
		}
		<-ctx.Done()
		return nil
	}
	for _, tt := range []struct {
		name   string
		filter Filter
		want   string
	}{
		{"all", Filter{}, "begun begun begun dropped last"},
		{"trouble", Filter{Trouble: true}, "dropped last"},
		{"a port and protocol", Filter{To: netip.MustParseAddr("10.96.0.10"), Port: 80, Protocol: "tcp"}, "begun dropped"},
		{"a sender", Filter{From: netip.MustParseAddr("10.0.0.1"), Protocol: "udp"}, "begun"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var got []string
			err := client.Live(ctx, tt.filter, func(e Event) error {
				if got = append(got, e.Outcome); strings.Join(got, " ") == tt.want {
					stop()
				}
				return nil
			})
			if err != nil || strings.Join(got, " ") != tt.want {
				t.Errorf("seen %v, %v; want %s", got, err, tt.want)
			}
		})
	}
}

// The busiest are those with the most connections since somebody last asked.
func TestBusiest(t *testing.T) {
	i := inspector()
	now := start
	i.Now = func() time.Time { return now }
	of := func(name string) service.Origin {
		return service.Origin{Service: service.Name{Namespace: "default", Name: name}}
	}
	counted := map[service.Origin]uint64{of("old"): 1000, of("new"): 10, of("none"): 0}
	i.Connections = func() (map[service.Origin]uint64, error) { return maps.Clone(counted), nil }
	for _, step := range []struct {
		name  string
		after time.Duration
		more  map[string]uint64
		over  time.Duration
		want  []Busy
	}{
		{"nobody asked before", 0, nil, 0, []Busy{{"default/old", "", 1000, 0}, {"default/new", "", 10, 0}}},
		{"new ones", 2 * time.Second, map[string]uint64{"new": 30, "old": 5}, 2 * time.Second, []Busy{{"default/new", "", 40, 30}, {"default/old", "", 1005, 5}}},
		{"two ask at once", time.Millisecond, map[string]uint64{"old": 1}, 2*time.Second + time.Millisecond, []Busy{{"default/new", "", 40, 30}, {"default/old", "", 1006, 6}}},
		{"what the other asked does not count", time.Second, map[string]uint64{"old": 1}, time.Second + time.Millisecond, []Busy{{"default/old", "", 1007, 2}, {"default/new", "", 40, 0}}},
		{"long ago", time.Hour, map[string]uint64{"new": 500}, 0, []Busy{{"default/old", "", 1007, 0}, {"default/new", "", 540, 0}}},
	} {
		now = now.Add(step.after)
		for name, n := range step.more {
			counted[of(name)] += n
		}
		s := i.Status()
		if diff := cmp.Diff(step.want, s.Busiest); diff != "" || s.Over != step.over {
			t.Errorf("%s: over %s, want %s (-want +got)\n%s", step.name, s.Over, step.over, diff)
		}
	}
	counted[of("old")] = 3 // its rows were made anew
	now = now.Add(time.Second)
	if s := i.Status(); s.Busiest[0] != (Busy{"default/old", "", 3, 3}) {
		t.Errorf("counted anew: %+v", s.Busiest)
	}
}
