package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/fairlead/fairlead/proxy/service"
)

// puppet is a Kube whose stores are filled by the test, as reflectors would. The
// reflectors themselves are tested with a real API server, in e2e/kube.
type puppet struct {
	*Kube
	services, slices, nodes kubeStore
}

func newPuppet() *puppet {
	feeds := proxyFeeds("node-1")
	k := newKube(feeds)
	return &puppet{k, kubeStore{k, feeds[0]}, kubeStore{k, feeds[1]}, kubeStore{k, feeds[2]}}
}

// list is what the stores get first.
func (p *puppet) list(t *testing.T, services ...any) {
	t.Helper()
	do(t, p.services.Replace(services, "1"))
	do(t, p.slices.Replace(nil, "1"))
	do(t, p.nodes.Replace(nil, "1"))
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func web(port int32) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.10", Ports: []corev1.ServicePort{{Port: port}}},
	}
}

// told is News as lines of text.
func told(t *testing.T, news News, err error) []string {
	t.Helper()
	do(t, err)
	var out []string
	for name, s := range news.Update.Services {
		if s == nil {
			out = append(out, name.String()+" gone")
		} else {
			out = append(out, fmt.Sprintf("%s %d", name, s.Ports[0].Number))
		}
	}
	for name := range news.Update.Slices {
		out = append(out, "slice "+name.String())
	}
	for name := range news.Update.Nodes {
		out = append(out, "node "+name)
	}
	slices.Sort(out)
	for _, p := range news.Problems {
		out = append(out, "problem: "+p.String())
	}
	for _, p := range news.Mended {
		out = append(out, "mended: "+p.String())
	}
	return out
}

func wantTold(t *testing.T, p *puppet, want ...string) {
	t.Helper()
	news, err := p.Next(t.Context())
	if diff := cmp.Diff(want, told(t, news, err)); diff != "" {
		t.Fatalf("want -, got +:\n%s", diff)
	}
}

// wantSilence fails if there is anything to tell.
func (p *puppet) wantSilence(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if news, err := p.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("told %v, %v", told(t, news, nil), err)
	}
}

// TestKubeFirstNews: nothing is told before everything is known, since what is
// not in the first News does not exist.
func TestKubeFirstNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		do(t, p.services.Replace([]any{web(80)}, "1"))
		do(t, p.nodes.Replace(nil, "1"))
		p.wantSilence(t)
		do(t, p.slices.Replace([]any{&discovery.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1"},
			AddressType: discovery.AddressTypeIPv4,
		}}, "1"))
		wantTold(t, p, "default/web 80", "slice default/web-1")
		p.wantSilence(t)
	})
}

func TestKubeFirstNewsMayBeEmpty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		p.list(t)
		wantTold(t, p)
	})
}

// TestKubeTellsDifferences: what is told is the difference of states, not what
// happened.
func TestKubeTellsDifferences(t *testing.T) {
	other := web(80)
	other.Name = "other"
	untold := web(80)
	untold.Labels = map[string]string{"app": "web"}
	tests := []struct {
		name   string
		events func(s kubeStore) error
		want   []string
	}{
		{"changed twice", func(s kubeStore) error { return errors.Join(s.Update(web(81)), s.Update(web(82))) }, []string{"default/web 82"}},
		{"deleted", func(s kubeStore) error { return s.Delete(web(80)) }, []string{"default/web gone"}},
		{"deleted and made anew", func(s kubeStore) error { return errors.Join(s.Delete(web(80)), s.Add(web(81))) }, []string{"default/web 81"}},
		{"not in a second list", func(s kubeStore) error { return s.Replace([]any{other}, "2") }, []string{"default/other 80", "default/web gone"}},
		{"the same in a second list", func(s kubeStore) error { return s.Replace([]any{web(80)}, "2") }, nil},
		{"changed and back", func(s kubeStore) error { return errors.Join(s.Update(web(81)), s.Update(web(80))) }, nil},
		{"changed in nothing that matters", func(s kubeStore) error { return s.Update(untold) }, nil},
		{"made and deleted", func(s kubeStore) error { return errors.Join(s.Add(other), s.Delete(other)) }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPuppet()
				p.list(t, web(80))
				wantTold(t, p, "default/web 80")
				do(t, tt.events(p.services))
				if tt.want != nil {
					wantTold(t, p, tt.want...)
				}
				p.wantSilence(t)
			})
		})
	}
}

// TestKubeNodes: who asks for Nodes waits for nothing else, and hears of all.
func TestKubeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKube([]feed{nodeFeed(fields.Everything())})
		p := &puppet{Kube: k, nodes: kubeStore{k, k.feeds[0]}}
		node := func(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
		do(t, p.nodes.Replace([]any{node("node-1"), node("node-2")}, "1"))
		wantTold(t, p, "node node-1", "node node-2")
		if err := p.Stale(time.Now()); err != nil {
			t.Error(err)
		}
		p.failed(kindNode, syscall.ECONNREFUSED)
		if err := p.Stale(time.Now()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("stale: %v", err)
		}
	})
}

// TestKubeProblems: a bad object is left out alone, and told once until it is
// right.
func TestKubeProblems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		bad := web(80)
		bad.Name = "bad"
		bad.Spec.ClusterIP = "127.0.0.1"
		const problem = `Service default/bad: spec.clusterIP: Invalid value: "127.0.0.1": must not be loopback`
		p.list(t, bad, web(80))
		wantTold(t, p, "default/web 80", "problem: "+problem)
		do(t, p.services.Replace([]any{bad, web(80)}, "2"))
		p.wantSilence(t)

		good := bad.DeepCopy()
		good.Spec.ClusterIP = "10.96.0.11"
		do(t, p.services.Update(good))
		wantTold(t, p, "default/bad 80", "mended: "+problem)
		do(t, p.services.Update(bad))
		wantTold(t, p, "default/bad gone", "problem: "+problem)
		do(t, p.services.Delete(bad))
		wantTold(t, p, "mended: "+problem)
		if len(p.records) != 1 {
			t.Errorf("%d records, want that of web", len(p.records))
		}
	})
}

// TestKubeBursts: the clock of each News, when a change comes at each of the
// times given.
func TestKubeBursts(t *testing.T) {
	ms := func(n ...int) (out []time.Duration) {
		for _, n := range n {
			out = append(out, time.Duration(n)*time.Millisecond)
		}
		return out
	}
	every3ms := make([]time.Duration, 40)
	for i := range every3ms {
		every3ms[i] = time.Duration(100+3*i) * time.Millisecond
	}
	tests := []struct {
		name          string
		changes, want []time.Duration
	}{
		{"alone", ms(100), ms(100)},
		{"each after quiet", ms(100, 160, 300), ms(100, 160, 300)},
		{"the first at once, the rest together", ms(100, 101, 102, 103), ms(100, 108)},
		{"no end", every3ms, ms(100, 153, 204, 222)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				p := newPuppet()
				p.list(t)
				wantTold(t, p)
				go func() {
					for i, at := range tt.changes {
						time.Sleep(time.Until(start.Add(at)))
						_ = p.services.Add(web(int32(i + 1)))
					}
				}()
				var got []time.Duration
				var last []string
				for final := fmt.Sprintf("default/web %d", len(tt.changes)); !slices.Contains(last, final); {
					news, err := p.Next(t.Context())
					last = told(t, news, err)
					got = append(got, time.Since(start))
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("want -, got +:\n%s", diff)
				}
			})
		})
	}
}

// TestKubeNextCutOff: a call that ctx ends takes nothing with it.
func TestKubeNextCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		p.list(t, web(80))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Next(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		wantTold(t, p, "default/web 80")
	})
}

func TestKubeStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		want := func(text string) {
			t.Helper()
			got := ""
			if err := p.Stale(time.Now()); err != nil {
				got = err.Error()
			}
			if got != text {
				t.Errorf("got %q, want %q", got, text)
			}
		}
		want("")
		time.Sleep(12 * time.Minute)
		want("watch Service objects: nothing is heard of the API server")
		p.heard(kindService)
		p.heard(kindNode)
		p.failed(kindSlice, syscall.ECONNREFUSED)
		want("watch EndpointSlice objects: connection refused")
		if err := p.Stale(time.Now()); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%v has lost its cause", err)
		}
		p.heard(kindSlice)
		p.list(t, web(80))
		want("")

		time.Sleep(6 * time.Minute)
		do(t, p.services.Bookmark("2"))
		do(t, p.nodes.Bookmark("2"))
		time.Sleep(6 * time.Minute)
		want("watch EndpointSlice objects: nothing is heard of the API server; last heard at 2000-01-01T00:12:00Z")
		do(t, p.slices.Bookmark("2"))
		want("")
		p.failed(kindNode, io.ErrUnexpectedEOF)
		want("watch Node objects: unexpected EOF; last heard at 2000-01-01T00:18:00Z")
	})
}

// What something on the way answers, with 200 too, is no word of the API server.
func TestKubeHearsAPIServersOnly(t *testing.T) {
	p := newPuppet()
	p.list(t)
	answers := http.Header{}
	transport, err := rest.TransportFor(p.overheard(kindSlice, &rest.Config{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Header: answers, Body: http.NoBody}, nil
	})}))
	do(t, err)
	for _, tt := range []struct{ kind, want string }{
		{"text/html; charset=utf-8", `watch EndpointSlice objects: 192.0.2.1 answers with "text/html; charset=utf-8", which is none of an API server`},
		{"application/vnd.kubernetes.protobuf;stream=watch", ""},
		{"", `watch EndpointSlice objects: 192.0.2.1 answers with "", which is none of an API server`},
		{"application/json", ""},
	} {
		answers.Set("Content-Type", tt.kind)
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://192.0.2.1/", http.NoBody)
		do(t, err)
		response, err := transport.RoundTrip(request)
		do(t, err)
		do(t, response.Body.Close())
		got := ""
		if err := p.Stale(time.Now()); err != nil {
			got, _, _ = strings.Cut(err.Error(), "; last heard")
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.kind, got, tt.want)
		}
	}
}

// TestKubeStoreOfStream: what a reflector collects from a stream arrives as what
// it lists does.
func TestKubeStoreOfStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		converted, err := p.services.Transformer()(web(80))
		do(t, err)
		p.list(t, converted)
		wantTold(t, p, "default/web 80")
	})
}

func TestNewKubeRefusesConfig(t *testing.T) {
	config := &rest.Config{Host: "https://192.0.2.1", TLSClientConfig: rest.TLSClientConfig{CAFile: "/nonexistent"}}
	if _, err := NewKube(config, "node-1"); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("got %v", err)
	}
}

// A node's source goes on without ServiceCIDRs where the API server has none, or does
// not show them.
func TestKubeWithoutServiceCIDRs(t *testing.T) {
	k := newKube([]feed{nodeFeed(fields.Everything()), serviceCIDRFeed()})
	do(t, kubeStore{k, k.feeds[0]}.Replace(nil, "1"))
	refusing := k.heeded(k.feeds[1], &cache.ListWatch{ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "servicecidrs"}, "")
	}})
	if _, ok := k.due(); ok {
		t.Error("there is news before all kinds are known")
	}
	if _, err := refusing.ListWithContext(t.Context(), metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("error %v", err)
	}
	if _, err := k.Next(t.Context()); err != nil {
		t.Error(err)
	}
	if err := k.Stale(time.Now()); err != nil {
		t.Error(err)
	}
}

// The file that a node keeps has ServiceCIDRs too.
func TestKubeRemembersServiceCIDRs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	feeds := []feed{nodeFeed(fields.Everything()), serviceCIDRFeed()}
	before := newKube(feeds)
	if _, err := before.Remember(path); err != nil {
		t.Fatal(err)
	}
	do(t, kubeStore{before, feeds[0]}.Replace(nil, "1"))
	do(t, kubeStore{before, feeds[1]}.Replace([]any{&networking.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networking.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16"}},
	}}, "1"))
	if _, err := before.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	before.save()
	after := newKube(feeds)
	saved, err := after.Remember(path)
	if err != nil || saved.IsZero() {
		t.Fatal(saved, err)
	}
	r := after.records[Object{Kind: kindServiceCIDR, Name: service.Name{Name: "kubernetes"}}]
	if r == nil || fmt.Sprint(r.now.value.(*ServiceCIDR).CIDRs) != "[10.96.0.0/16]" {
		t.Errorf("remembered: %+v", r)
	}
}

// A directory and an API server mean the same by ServiceCIDRs: those that are right, those
// that are not, and those that go.
func TestServiceCIDRsFromEither(t *testing.T) {
	kube := newKube([]feed{nodeFeed(fields.Everything()), serviceCIDRFeed()})
	do(t, kubeStore{kube, kube.feeds[0]}.Replace(nil, "1"))
	store := kubeStore{kube, kube.feeds[1]}
	path := filepath.Join(t.TempDir(), "services.yaml")
	dir, err := NewDir(filepath.Dir(path))
	do(t, err)
	t.Cleanup(func() { _ = dir.Close() })
	for _, step := range []struct {
		cidrs []string // nil: it is gone
		want  string
	}{
		{[]string{"10.96.0.0/16", "fd00:96::/112"}, "more is [10.96.0.0/16 fd00:96::/112]"},
		{[]string{"10.97.0.0/16"}, "more is [10.97.0.0/16]"},
		{[]string{"10.97.0.1/16"}, "more is gone; ServiceCIDR more: spec.cidrs[0]: Invalid value: \"10.97.0.1/16\": must not have bits set beyond the prefix length: write 10.97.0.0/16"},
		{[]string{"10.97.0.0/16", "10.98.0.0/16"}, "ServiceCIDR more: spec.cidrs[1]: Invalid value: \"10.98.0.0/16\": must not be a second one of IPv4, after 10.97.0.0/16"},
		{[]string{}, "ServiceCIDR more: spec.cidrs: Required value: a range of IPv4 or IPv6, or one of each"},
		{[]string{"fd00:96::/112"}, "more is [fd00:96::/112]"},
		{nil, "more is gone"},
	} {
		object := &networking.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "more"}, Spec: networking.ServiceCIDRSpec{CIDRs: step.cidrs}}
		if step.cidrs == nil {
			do(t, store.Replace(nil, "1"))
			do(t, os.Remove(path))
		} else {
			do(t, store.Replace([]any{object}, "1"))
			cidrs, err := json.Marshal(step.cidrs)
			do(t, err)
			write(t, path, fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: %s}}", cidrs))
		}
		for _, source := range []interface {
			Next(context.Context) (News, error)
		}{kube, dir} {
			news, err := source.Next(t.Context())
			do(t, err)
			if got := toldRanges(news); got != step.want {
				t.Errorf("%T of %q tells %q, want %q", source, step.cidrs, got, step.want)
			}
		}
	}
}

// toldRanges is what News has of ServiceCIDRs, without the lines of files.
func toldRanges(news News) string {
	var out []string
	for name, c := range news.ServiceCIDRs {
		if c == nil {
			out = append(out, name+" is gone")
		} else {
			out = append(out, fmt.Sprintf("%s is %s", name, c.CIDRs))
		}
	}
	for _, p := range news.Problems {
		p.Place = Place{}
		out = append(out, p.String())
	}
	return strings.Join(out, "; ")
}
