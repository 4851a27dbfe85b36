package kube_test

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/fairlead/fairlead/e2e/kube"
	"github.com/fairlead/fairlead/proxy/proxytest"
)

// Whatever metric of its own a kube-proxy shows, Fairlead shows too.
func TestMetricsOfKubeProxy(t *testing.T) {
	api := startAPI(t)
	if err := api.prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours, theirs := proxytest.NewPlace(t), proxytest.NewPlace(t)
	if err := api.point(t.Context(), ours.Server("a")); err != nil {
		t.Fatal(err)
	}
	config := func(p proxytest.Place) string { return kube.KubeProxyConfig(onNode, api.reach(t, p.Node())) }
	keep(t)(kube.StartFairlead(ours.Node(), filepath.Join(programs.Dir(t), "fairlead"), config(ours), "nft", t.TempDir()))
	keep(t)(kube.StartKubeProxy(t.Context(), theirs.Node(), config(theirs), "nft", t.TempDir()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, place := range []proxytest.Place{ours, theirs} {
		if err := place.UntilServedBy(ctx, probe, "a"); err != nil {
			t.Fatal(err)
		}
	}
	wanted := metricNames(t, theirs)
	if len(wanted) < 10 {
		t.Fatalf("kube-proxy must have more metrics: %v", wanted)
	}
	for { // what a round was like is told after it
		shown := metricNames(t, ours)
		missing := slices.DeleteFunc(slices.Sorted(maps.Keys(wanted)), func(name string) bool { return shown[name] })
		if len(missing) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("only kube-proxy has %v", missing)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// metricNames are those of kube-proxy's names that have samples.
func metricNames(t *testing.T, place proxytest.Place) map[string]bool {
	t.Helper()
	text, err := metrics(place)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, name := range regexp.MustCompile(`(?m)^# TYPE (kubeproxy_\w+)`).FindAllStringSubmatch(text, -1) {
		names[name[1]] = true
	}
	return names
}

// metrics is what the proxy of a place tells of itself.
func metrics(place proxytest.Place) (string, error) {
	dial := func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = place.From("node", func() error {
			conn, err = new(net.Dialer).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	response, err := client.Get("http://127.0.0.1:10249/metrics")
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}
