package watch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func webSlice() *discovery.EndpointSlice {
	return &discovery.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "web-1", Labels: map[string]string{discovery.LabelServiceName: "web"}},
		AddressType: discovery.AddressTypeIPv4,
		Endpoints:   []discovery.Endpoint{{Addresses: []string{"10.244.0.2"}}},
	}
}

// remember fills a file with what a source knew, and returns its path.
func remember(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state", "cluster")
	p := newPuppet()
	recall, err := p.Remember(path)
	if err != nil || !recall.IsZero() {
		t.Fatalf("of no file: %s, %v", recall, err)
	}
	do(t, p.services.Replace([]any{web(80)}, "1"))
	do(t, p.slices.Replace([]any{webSlice()}, "1"))
	do(t, p.nodes.Replace(nil, "1"))
	wantTold(t, p, "default/web 80", "slice default/web-1")
	p.save()
	if err := p.MemoryError(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	do(t, err)
	if info.Mode() != 0o600 {
		t.Errorf("mode %s", info.Mode())
	}
	return path
}

// An API server that is away: what was known is told, and that it is old.
func TestMemoryIsTold(t *testing.T) {
	path := remember(t)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		p := newPuppet()
		recall, err := p.Remember(path)
		if err != nil || recall.IsZero() {
			t.Fatalf("%s, %v", recall, err)
		}
		wantTold(t, p, "default/web 80", "slice default/web-1")
		if waited := time.Since(began); waited != memoryPatience {
			t.Errorf("told after %s, want %s", waited, memoryPatience)
		}
		if got := p.Recalled(); !got.Equal(recall) {
			t.Errorf("recalled is %s, want %s", got, recall)
		}
		if err := p.Stale(time.Now()); err == nil || !strings.Contains(err.Error(), "what counts is what was known at "+recall.Format(time.RFC3339)) {
			t.Errorf("stale: %v", err)
		}
		// It answers: the difference is told, kind by kind.
		do(t, p.services.Replace([]any{web(81)}, "1"))
		wantTold(t, p, "default/web 81")
		do(t, p.slices.Replace(nil, "1"))
		wantTold(t, p, "slice default/web-1")
		do(t, p.nodes.Replace(nil, "1"))
		if got := p.Recalled(); !got.IsZero() {
			t.Errorf("recalled is still %s", got)
		}
		p.wantSilence(t)
	})
}

// An API server that answers is asked, not the file.
func TestMemoryIsNotNeeded(t *testing.T) {
	path := remember(t)
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		if _, err := p.Remember(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		p.list(t, web(82))
		wantTold(t, p, "default/web 82")
		p.wantSilence(t)
	})
}

// A source that has heard nothing does not write over what is remembered.
func TestMemoryIsKept(t *testing.T) {
	path := remember(t)
	before, err := os.ReadFile(path)
	do(t, err)
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet()
		if _, err := p.Remember(path); err != nil {
			t.Fatal(err)
		}
		wantTold(t, p, "default/web 80", "slice default/web-1")
		p.save()
	})
	after, err := os.ReadFile(path)
	if err != nil || string(after) != string(before) {
		t.Errorf("the file has changed: %v", err)
	}
}

func TestMemoryOfOthers(t *testing.T) {
	path := remember(t)
	text, err := os.ReadFile(path)
	do(t, err)
	for name, tt := range map[string]struct{ text, err string }{
		"another node":   {strings.Replace(string(text), `"node":""`, `"node":"node-2"`, 1), ""},
		"another schema": {strings.Replace(string(text), "cluster/1", "cluster/9", 1), `schema "fairlead-cluster/9": allowed is fairlead-cluster/1; it is written anew`},
		"cut off":        {string(text[:len(text)-9]), "unexpected EOF; it is written anew"},
		"empty":          {"", `schema "": allowed is fairlead-cluster/1; it is written anew`},
		"another kind":   {strings.Replace(string(text), `"kind":"Service"`, `"kind":"Pod"`, 1), "Pod default/web: this kind is not known; it is written anew"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cluster")
			do(t, os.WriteFile(path, []byte(tt.text), 0o600))
			synctest.Test(t, func(t *testing.T) {
				p := newPuppet()
				recall, err := p.Remember(path)
				if !recall.IsZero() || (tt.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got %s, %v, want an error with %q", recall, err, tt.err)
				}
				p.wantSilence(t)
				p.list(t, web(80))
				wantTold(t, p, "default/web 80")
				p.save()
				if recall, err := newPuppet().Remember(path); err != nil || recall.IsZero() {
					t.Errorf("it was not written anew: %s, %v", recall, err)
				}
			})
		})
	}
}
