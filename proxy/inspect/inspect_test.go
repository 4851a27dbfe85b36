package inspect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// still is a View of a Resolver that nobody changes.
type still struct{ r *service.Resolver }

func (s still) View(read func(*service.Resolver)) { read(s.r) }

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// inspector knows one Service with one endpoint, whose destination another claims.
func inspector() *Inspector {
	r := service.NewResolver(service.Config{NodeName: "n1"})
	svc := func(name string, created time.Time) *service.Service {
		return &service.Service{
			Name: service.Name{Namespace: "default", Name: name}, Created: created,
			ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
			Ports:      []service.ServicePort{{Port: service.Port{Name: "http", Protocol: service.TCP, Number: 80}}},
		}
	}
	web, late := svc("web", start), svc("late", start.Add(time.Hour))
	slice := &service.Slice{
		Name: service.Name{Namespace: "default", Name: "web-1"}, Service: "web",
		Ports:     []service.Port{{Name: "http", Protocol: service.TCP, Number: 8080}},
		Endpoints: []service.Endpoint{{Addr: netip.MustParseAddr("10.244.1.2"), Ready: true, Serving: true}},
	}
	r.Apply(service.Update{
		Services: map[service.Name]*service.Service{web.Name: web, late.Name: late},
		Slices:   map[service.Name]*service.Slice{slice.Name: slice},
		Nodes:    map[string]*service.Node{"n1": {Name: "n1", PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}},
	})
	return &Inspector{
		Facts: Facts{Version: "v1", Node: "n1", Mode: "iptables", Started: start},
		View:  still{r}, Now: func() time.Time { return start.Add(time.Minute) },
	}
}

// served returns a Client of an Inspector that serves until the test ends.
func served(t *testing.T, i *Inspector) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "proxy.sock")
	stop, err := Serve(path, i.Handler())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return NewClient("the proxy", path)
}

func TestStatus(t *testing.T) {
	i := inspector()
	client := served(t, i)
	status := func() (s Status) {
		if err := client.Get(t.Context(), "/status", &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := status(); s.Healthy() {
		t.Errorf("healthy before the kernel took anything: %+v", s)
	}
	wrong := watch.Problem{Field: "spec.ports[0].port", Message: "0: must be between 1 and 65535"}
	i.News(watch.News{Problems: []watch.Problem{wrong}})
	i.Synced(proxy.Round{Took: time.Millisecond})
	i.UpToDate(proxy.LeftOut{})
	want := Status{
		Facts: i.Facts, Synced: start.Add(time.Minute), Took: time.Millisecond,
		Frontends: 1, Pools: 1, Backends: 1,
		Conflicts: []string{"10.96.0.10:80/tcp: default/web:http has it, default/late:http is younger"},
		Problems:  []string{"spec.ports[0].port: 0: must be between 1 and 65535"},
	}
	if diff := cmp.Diff(want, status()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	i.News(watch.News{Mended: []watch.Problem{wrong}})
	i.Synced(proxy.Round{Err: errors.New("no")})
	if s := status(); s.Healthy() || s.Error != "no" || !s.Pending || len(s.Problems) > 0 {
		t.Errorf("after a failure: %+v", s)
	}
	i.Synced(proxy.Round{})
	i.Stale = func(time.Time) error { return errors.New("nothing heard") }
	if s := status(); s.Healthy() || s.Stale != "nothing heard" {
		t.Errorf("with a stale source: %+v", s)
	}
}

func TestServices(t *testing.T) {
	client := served(t, inspector())
	backends := []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:8080")}
	want := []Row{{
		Service: "default/web", Port: "http",
		Destination: netip.MustParseAddrPort("10.96.0.10:80"), Protocol: service.TCP,
		Paths: [3]Path{
			{Sender: service.FromPod, Verdict: service.Forward, Backends: backends},
			{Sender: service.FromNode, Verdict: service.Forward, Masquerade: true, Backends: backends},
			{Sender: service.FromOutside, Verdict: service.Forward, Masquerade: true, Backends: backends},
		},
	}}
	for question, want := range map[string][]Row{
		"/services":                  want,
		"/services?name=default/web": want,
		"/services?name=default/no":  {},
	} {
		var got []Row
		if err := client.Get(t.Context(), question, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", question, diff)
		}
	}
}

func TestTrace(t *testing.T) {
	i := inspector()
	client := served(t, i)
	i.Differences = func(context.Context) (map[service.Name][]string, error) {
		return map[service.Name][]string{
			{}:                                   {"the hooks are missing"},
			{Namespace: "default", Name: "web"}:  {"one is missing"},
			{Namespace: "default", Name: "gone"}: {"is there and should not be"},
		}, nil
	}
	var got Traced
	if err := client.Get(t.Context(), "/trace?from=10.244.1.2&to=10.96.0.10:80&protocol=tcp", &got); err != nil {
		t.Fatal(err)
	}
	want := i.Trace(t.Context(), service.Packet{Src: netip.MustParseAddr("10.244.1.2"), Dst: netip.MustParseAddrPort("10.96.0.10:80"), Protocol: service.TCP}, false)
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.IgnoreFields(service.Explanation{}, "Origin")); diff != "" || want.Verdict != service.Forward {
		t.Errorf("verdict %v; (-want +got)\n%s", want.Verdict, diff)
	}
	if got.Next.IsValid() {
		t.Errorf("where nobody knows, %s is next", got.Next)
	}
	i.Turns = func(key service.Key, class service.Class) (uint64, bool) {
		return 7, key.Addr == netip.MustParseAddr("10.96.0.10") && class == service.FromPod
	}
	if next := i.Trace(t.Context(), service.Packet{Src: netip.MustParseAddr("10.244.1.2"), Dst: netip.MustParseAddrPort("10.96.0.10:80"), Protocol: service.TCP}, false).Next; next != netip.MustParseAddrPort("10.244.1.2:8080") {
		t.Errorf("next is %s", next)
	}
	if got.Service != "default/web:http" || !slices.Equal(got.Kernel, []string{"the hooks are missing", "one is missing"}) {
		t.Errorf("of %s the kernel has otherwise: %q", got.Service, got.Kernel)
	}
	if err := client.Get(t.Context(), "/trace?from=x", &got); err == nil {
		t.Error("a question that makes no sense was answered")
	}
}

// What a socket leads is masqueraded by nobody, not even to the sender itself, and comes
// from a pod, whatever its address. Where it is not known whether there is a socket, both
// is said.
func TestTraceBySocket(t *testing.T) {
	i := inspector()
	i.Path = func(_ service.Frontend, p service.Packet, class service.Class, routed bool) (string, error) {
		switch {
		case class == service.FromPod && !routed, p.Src == netip.MustParseAddr("172.17.0.2"):
			return "socket", nil
		case p.Src == netip.MustParseAddr("172.17.0.3"):
			return "packet", errors.New("it is dark")
		}
		return "packet", nil
	}
	for question, want := range map[string][]string{
		"from=10.244.1.2&to=10.96.0.10:80":             {"pod by socket"},
		"from=10.244.1.2&to=10.96.0.10:80&routed=yes":  {"pod by packet masqueraded"}, // it is the endpoint
		"from=172.17.0.2&to=10.96.0.10:80":             {"pod by socket"},
		"from=172.17.0.3&to=10.96.0.10:80":             {"outside by packet masqueraded", "pod by socket"},
		"from=203.0.113.9&to=10.96.0.10:80&routed=yes": {"outside by packet masqueraded"},
		"from=203.0.113.9&to=10.96.0.10:81&routed=yes": {"outside by "},
	} {
		var got Traced
		if err := served(t, i).Get(t.Context(), "/trace?protocol=tcp&"+question, &got); err != nil {
			t.Fatal(err)
		}
		said := []string{textOf(got.Led)}
		if got.IfHere != nil {
			said = append(said, textOf(*got.IfHere))
		}
		if diff := cmp.Diff(want, said); diff != "" || (got.Unsure == "it is dark") != (len(want) == 2) {
			t.Errorf("%s: unsure %q (-want +got)\n%s", question, got.Unsure, diff)
		}
	}
}

func textOf(l Led) string {
	text := fmt.Sprintf("%s by %s", l.Class, l.Path)
	if len(l.Endpoints) > 0 && l.Endpoints[0].Masquerade {
		text += " masqueraded"
	}
	return text
}

func TestSocket(t *testing.T) {
	i, path := inspector(), filepath.Join(t.TempDir(), "proxy.sock")
	if err := NewClient("the proxy", path).Get(context.Background(), "/status", new(Status)); !errors.Is(err, ErrNobody) {
		t.Errorf("without a proxy: %v", err)
	}
	stop, err := Serve(path, i.Handler())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info.Mode(), err)
	}
	if _, err := Serve(path, i.Handler()); err == nil {
		t.Error("a second proxy took the socket of one that lives")
	}
	stop()
	leftByKill(t, path)
	stop, err = Serve(path, i.Handler())
	if err != nil {
		t.Fatalf("where a proxy was killed: %v", err)
	}
	stop()
}

// leftByKill makes a socket at which nobody listens any more.
func leftByKill(t *testing.T, path string) {
	t.Helper()
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.(interface{ SetUnlinkOnClose(bool) }).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
