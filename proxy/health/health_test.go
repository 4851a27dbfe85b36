package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/fairlead/fairlead/e2e/netns"
	"github.com/fairlead/fairlead/proxy"
	"github.com/fairlead/fairlead/proxy/service"
	"github.com/fairlead/fairlead/proxy/watch"
)

// clock is a time that the test sets.
type clock struct{ time.Time }

func (c *clock) now() time.Time       { return c.Time }
func (c *clock) pass(d time.Duration) { c.Time = c.Add(d) }

func TestMonitor(t *testing.T) {
	node := func(n *service.Node) watch.News {
		return watch.News{Update: service.Update{Nodes: map[string]*service.Node{"n1": n}}}
	}
	tests := []struct {
		name           string
		happens        func(m *Monitor, c *clock)
		livez, healthz int
		nodeEligible   string
	}{
		{"has just started", func(*Monitor, *clock) {}, 200, 503, "true"},
		{"never synced", func(_ *Monitor, c *clock) { c.pass(Late) }, 503, 503, "true"},
		{"synced", func(m *Monitor, _ *clock) { m.UpToDate(proxy.LeftOut{}) }, 200, 200, "true"},
		{"nothing new for long", func(m *Monitor, c *clock) { m.UpToDate(proxy.LeftOut{}); c.pass(time.Hour) }, 200, 200, "true"},
		{"news waits", func(m *Monitor, c *clock) {
			m.UpToDate(proxy.LeftOut{})
			m.News(watch.News{})
			c.pass(Late - 1)
		}, 200, 200, "true"},
		{"news waits too long", func(m *Monitor, c *clock) { m.UpToDate(proxy.LeftOut{}); m.News(watch.News{}); c.pass(Late) }, 503, 503, "true"},
		{"more news does not make it younger", func(m *Monitor, c *clock) {
			m.UpToDate(proxy.LeftOut{})
			m.News(watch.News{})
			c.pass(Late - 1)
			m.News(watch.News{})
			c.pass(1)
		}, 503, 503, "true"},
		{"recovered", func(m *Monitor, c *clock) { c.pass(Late); m.UpToDate(proxy.LeftOut{}) }, 200, 200, "true"},
		{"node leaves", func(m *Monitor, _ *clock) {
			m.News(node(&service.Node{Leaving: true}))
			m.UpToDate(proxy.LeftOut{})
		}, 200, 503, "false"},
		{"node is gone", func(m *Monitor, _ *clock) { m.News(node(nil)); m.UpToDate(proxy.LeftOut{}) }, 200, 503, "false"},
		{"node stays after all", func(m *Monitor, _ *clock) {
			m.News(node(&service.Node{Leaving: true}))
			m.News(node(&service.Node{}))
			m.UpToDate(proxy.LeftOut{})
		}, 200, 200, "true"},
		{"another node leaves", func(m *Monitor, _ *clock) {
			m.News(watch.News{Update: service.Update{Nodes: map[string]*service.Node{"n2": nil}}})
			m.UpToDate(proxy.LeftOut{})
		}, 200, 200, "true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &clock{time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
			m := NewMonitor("n1", c.now)
			tt.happens(m, c)
			for path, want := range map[string]int{"/livez": tt.livez, "/healthz": tt.healthz} {
				w := httptest.NewRecorder()
				m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
				if w.Code != want {
					t.Errorf("%s: %d, want %d", path, w.Code, want)
				}
				if want := `"nodeEligible":` + tt.nodeEligible; !strings.Contains(w.Body.String(), want) {
					t.Errorf("%s: %s, want %s", path, w.Body, want)
				}
				if want := fmt.Sprintf(`"healthy":%v`, tt.livez == 200); !strings.Contains(w.Body.String(), want) {
					t.Errorf("%s: %s, want %s", path, w.Body, want)
				}
			}
		})
	}
}

func TestStaleSourceIsTold(t *testing.T) {
	m := NewMonitor("n1", time.Now)
	m.Stale = func(time.Time) error { return errors.New("the watch is silent") }
	asked := ""
	m.Asked = func(probe string, code int) { asked += fmt.Sprint(probe, " ", code) }
	m.UpToDate(proxy.LeftOut{})
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), `"stale":"the watch is silent"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if asked != "/healthz 200" {
		t.Errorf("asked: %s", asked)
	}
}

func TestNodePorts(t *testing.T) {
	ns := netns.NewT(t)
	ns.RunT(t, "ip", "link", "set", "lo", "up")
	healthy := true
	n := NewNodePorts(func() bool { return healthy })
	t.Cleanup(n.Close)
	sync := func(checks map[service.Name]service.HealthCheck) error {
		return ns.Do(func() error { return n.Sync(t.Context(), checks) })
	}
	web, dns := service.Name{Namespace: "default", Name: "web"}, service.Name{Namespace: "default", Name: "dns"}
	must := func(checks map[service.Name]service.HealthCheck) {
		t.Helper()
		if err := sync(checks); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(port, want string) {
		t.Helper()
		if diff := cmp.Diff(want, ask(ns, port)); diff != "" {
			t.Errorf("port %s: %s", port, diff)
		}
	}

	must(map[service.Name]service.HealthCheck{web: {Port: 30100, Local: 2}, dns: {Port: 30101}})
	expect("30100", `200 weight 2 {"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`)
	expect("30101", `503 weight 0 {"service":{"namespace":"default","name":"dns"},"localEndpoints":0,"serviceProxyHealthy":true}`)
	healthy = false
	expect("30100", `503 weight 2 {"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":false}`)
	healthy = true

	must(map[service.Name]service.HealthCheck{web: {Port: 30102, Local: 1}})
	expect("30102", `200 weight 1 {"service":{"namespace":"default","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true}`)
	expect("30100", "refused")
	expect("30101", "refused")

	// Two Services with one port: the second is an error, and has it when the
	// first lets go.
	if err := sync(map[service.Name]service.HealthCheck{web: {Port: 30102}, dns: {Port: 30102}}); err == nil || !strings.Contains(err.Error(), "serve health check of default/dns") {
		t.Errorf("error: %v", err)
	}
	must(map[service.Name]service.HealthCheck{dns: {Port: 30102, Local: 3}})
	expect("30102", `200 weight 3 {"service":{"namespace":"default","name":"dns"},"localEndpoints":3,"serviceProxyHealthy":true}`)
}

// ask is the answer at a port inside a namespace, in one line.
func ask(ns *netns.NS, port string) string {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			err = ns.Do(func() (err error) {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return conn, err
		},
	}}
	response, err := client.Get("http://127.0.0.1:" + port + "/")
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "refused"
	}
	if err != nil {
		return err.Error()
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d weight %s %s", response.StatusCode, response.Header.Get("X-Load-Balancing-Endpoint-Weight"), strings.TrimSpace(string(body)))
}
