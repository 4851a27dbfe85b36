package metrics

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// What is asked of an API server is counted by what it answers.
func TestClient(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/version" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte("{}"))
	}))
	t.Cleanup(api.Close)
	m := New("v1", "iptables")
	m.Client()
	c, err := rest.HTTPClientFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	base, err := url.Parse(api.URL)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := rest.NewRESTClient(base, "", rest.ClientContentConfig{}, nil, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Get().AbsPath("/version").DoRaw(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := asked.Get().AbsPath("/apis").DoRaw(t.Context()); err == nil {
		t.Error("what is forbidden is answered")
	}
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	host := strings.TrimPrefix(api.URL, "http://")
	for _, want := range []string{
		`rest_client_requests_total{code="200",host="` + host + `",method="GET"} 1`,
		`rest_client_requests_total{code="403",host="` + host + `",method="GET"}`,
		`rest_client_request_duration_seconds_count{host="` + host + `",verb="GET"}`,
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s in:\n%s", want, w.Body.String())
		}
	}
}
